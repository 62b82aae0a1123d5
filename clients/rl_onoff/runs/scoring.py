"""What is asked of given solutions: distributions of one model, divergences of two. One line of results a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rl_onoff.client import AsyncClient
from rl_onoff.data import Row
from rl_onoff.runs.tasks import Record, Task, result_of
from rl_onoff.schemas import PromptMode, RowKind


@dataclass(frozen=True)
class Divergence(Task):
    """How far apart the models are at every token of the given solutions.

    A result is `ItemDivergence` with `columns`, the answer's `noise_floor`, and its `provenance`: all that
    `runs.tokens.summarise_divergence` needs.
    """

    a: str | None = None
    b: str | None = None
    measures: Sequence[str] = ("js", "kl_ab", "kl_ba")
    units: Literal["nats", "bits"] = "nats"
    temperature: float = 1.0
    prompt_mode: Literal["shared", "per_model"] = "shared"
    noise_floor: bool = False
    merge_eos: bool = False

    command = "divergence"
    needs = ("prompt", "solution")

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.a, self.b)

    def settings(self) -> dict[str, Any]:
        return {
            "columns": True,  # runs from before they were recorded cannot be gone on with
            "measures": list(self.measures),
            "units": self.units,
            "temperature": self.temperature,
            "prompt_mode": self.prompt_mode,
        } | {name: True for name in ("noise_floor", "merge_eos") if getattr(self, name)}

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        answer = await client.divergence(
            [row.item],
            a=self.a,
            b=self.b,
            measures=self.measures,
            columns=True,
            units=self.units,
            temperature=self.temperature,
            prompt_mode=self.prompt_mode,
            noise_floor=self.noise_floor,
            merge_eos=self.merge_eos,
        )
        record = result_of(row, 0) | answer.items[0].model_dump()
        record["provenance"] = answer.provenance.model_dump()
        if answer.noise_floor is not None:
            record["noise_floor"] = answer.noise_floor.model_dump()
        return [record]


@dataclass(frozen=True)
class Distributions(Task):
    """The `top_k` most likely tokens of one model after every token of the given solutions."""

    model: str = ""
    top_k: int = 10
    kind: RowKind = "logprobs"
    temperature: float = 1.0
    prompt_mode: PromptMode = "shared"
    merge_eos: bool = False

    command = "distributions"
    needs = ("prompt", "solution")

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.model,)

    def settings(self) -> dict[str, Any]:
        return {
            "top_k": self.top_k,
            "kind": self.kind,
            "temperature": self.temperature,
            "prompt_mode": self.prompt_mode,
            "merge_eos": self.merge_eos,
        }

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        answer = await client.distributions(
            [row.item],
            model=self.model,
            top_k=self.top_k,
            kind=self.kind,
            temperature=self.temperature,
            prompt_mode=self.prompt_mode,
            merge_eos=self.merge_eos,
        )
        return [result_of(row, 0) | answer.items[0].model_dump() | {"vocab_size": answer.vocab_size}]
