"""What is asked of given solutions: distributions of one model, divergences of two. One line of results a row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rl_onoff.client import AsyncClient
from rl_onoff.data import Row
from rl_onoff.runs.summary import summarise
from rl_onoff.runs.tasks import Record, Task, result_of
from rl_onoff.runs.tokens import Origins
from rl_onoff.schemas import PromptMode, RowKind
from rl_onoff.schemas.distributions import RowsProvenance

#: The provenance of rows that do not tell it.
UNTOLD: Final[Mapping[str, None]] = dict.fromkeys(RowsProvenance.model_fields)


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
        } | self.changed("noise_floor", "merge_eos")

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
    """The `top_k` most likely tokens of one model after every token of the given solutions.

    A result is `ItemDistributions` with the answer's `vocab_size` and its `provenance`.
    """

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
        } | self.changed("prompt_mode", "merge_eos")

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
        record = result_of(row, 0) | answer.items[0].model_dump() | {"vocab_size": answer.vocab_size}
        if answer.provenance is not None:
            record["provenance"] = answer.provenance.model_dump()
        return [record]


def summarise_distributions(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of `runs.summary.summarise`, and where results came from: of rows in shards the shards tell that.

    `provenance` is null where results differ in it; then `provenances` has each, with its number of `results`. Its
    fields are null of results that do not tell it, as those of older runs.
    """
    origins, results = Origins(), 0

    def told() -> Iterator[Mapping[str, Any]]:
        nonlocal results
        for record in records:
            if "error" not in record and "shard" not in record:
                origins.add({**UNTOLD, **record.get("provenance", {})})
                results += 1
            yield record

    summary = summarise(told())
    return summary | origins.summary() if results else summary
