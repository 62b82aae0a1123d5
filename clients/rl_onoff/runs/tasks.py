"""What is asked for every row: samples, distributions, divergences, switched generations. One line of results each."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from rl_onoff.client import AsyncClient
from rl_onoff.data import Row
from rl_onoff.fields import GenerateFields, SwitchFields
from rl_onoff.kinds import parse_policy
from rl_onoff.metrics import Metric, find
from rl_onoff.metrics.registry import MODEL_METRICS
from rl_onoff.philox import derive_seed
from rl_onoff.runs.sharing import Prefix, Traces, of_answer, of_record, switches, walk
from rl_onoff.schemas import SwitchResponse

Record = dict[str, Any]


class Task(ABC):
    """One request, or a few, per row.

    `needs`: the roles a row must have. `samples`: lines of results per row. `models`: the models it asks, by name;
    None stands for the only pair served.
    """

    command: str
    needs: tuple[str, ...] = ("prompt",)
    samples: int = 1

    @property
    @abstractmethod
    def models(self) -> tuple[str | None, ...]:
        """The models asked; None: those of the only pair."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the results, for the manifest."""

    def changed(self, *names: str) -> dict[str, Any]:
        """Those of these settings that are not their default: runs from before such a setting have none."""
        return {name: value for name in names if (value := getattr(self, name)) != getattr(type(self), name)}

    def samples_of(self, row: Row) -> Collection[int]:
        """The numbers of a row's results."""
        return range(self.samples)

    @abstractmethod
    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        """The results of a row's missing samples."""


@dataclass(frozen=True)
class Scored:
    """Text metrics of what was written."""

    #: Metrics that the service computes for this task.
    from_service: ClassVar[tuple[str, ...]] = ()

    metrics: tuple[str, ...] = ()

    def _found(self) -> list[Metric]:
        return [find(name) for name in self.metrics if name not in self.from_service]

    async def _scores(self, texts: list[str], row: Row) -> list[dict[str, float]]:
        # In a thread: math-verify may think for seconds, and meanwhile other requests go on.
        found = self._found()
        if not found:
            return [{} for _ in texts]
        return await asyncio.to_thread(
            lambda: [{each.name: each.checked(text, row.reference) for each in found} for text in texts]
        )

    def _needs(self) -> tuple[str, ...]:
        wanted = any(each.needs_reference for each in self._found())
        return ("prompt", "reference") if wanted else ("prompt",)


def result_of(row: Row, sample: int) -> Record:
    """The beginning of a line of results: which row and sample, and what was asked."""
    record: Record = {"id": row.id, "sample": sample}
    record |= {name: value for name, value in row.start.items() if value is not None}
    if row.reference is not None:
        record["reference"] = row.reference
    return record


@dataclass(frozen=True)
class Sample(Scored, Task):
    """`n` samples of one model per row. Sample i has the noise of sample i of a `SwitchTask` with the same seed."""

    model: str = ""
    n: int = 1
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    command = "sample"
    from_service = tuple(MODEL_METRICS)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._needs()

    @property
    def samples(self) -> int:  # type: ignore[override]
        return self.n

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.model,)

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "seed": self.seed, "sampling": dict(self.sampling), "metrics": list(self.metrics)}

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        start = row.start
        fields: dict[str, Any] = {
            "model": self.model,
            "sampling": {**self.sampling, "n": self.n, "seed": row.seed(self.seed)},
            "metrics": [name for name in self.metrics if name in MODEL_METRICS],
        }
        answer = await client.generate(start.pop("prompt", None), **cast(GenerateFields, start | fields))
        results = [result for result in answer.results if result.index in missing]
        scores = await self._scores([result.text for result in results], row)
        return [
            result_of(row, result.index)
            | {
                "text": result.text,
                "token_ids": result.token_ids,
                "finish_reason": result.finish_reason,
                "seed": result.seed,
                "metrics": result.metrics | found,
            }
            for result, found in zip(results, scores, strict=True)
        ]


@dataclass(frozen=True)
class SwitchTask(Scored, Task):
    """`n` switched generations per row; with `seeds` n by each of them, in place of `seed`.

    `traces`: earlier runs over the same rows, by the same models, seeds and sampling, that recorded `measures` too.
    What they have of a generation is taken over (`runs.sharing`). `shared` of a result says how many tokens, `passes`
    the forward passes of A and B that the rest took.
    """

    a: str | None = None
    b: str | None = None
    policy: Mapping[str, Any] = field(default_factory=lambda: {"kind": "divergence"})
    n: int = 1
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    measures: Sequence[str] = ()
    seeds: Sequence[int] = ()
    traces: Traces | None = field(default=None, compare=False)

    command = "switch"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._needs()

    @property
    def samples(self) -> int:  # type: ignore[override]
        return self.n * max(1, len(self.seeds))

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.a, self.b)

    def settings(self) -> dict[str, Any]:
        return {
            "policy": dict(self.policy),
            "n": self.n,
            "seed": self.seed,
            "sampling": dict(self.sampling),
            "measures": list(self.measures),
            "metrics": list(self.metrics),
            **({"seeds": list(self.seeds)} if self.seeds else {}),
        }

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        return [await self._one(client, row, sample) for sample in sorted(missing)]

    def _seed(self, row: Row, sample: int) -> int:
        study = self.seeds[sample // self.n] if self.seeds else self.seed
        return derive_seed(row.seed(study), 0, sample % self.n)

    async def _one(self, client: AsyncClient, row: Row, sample: int) -> Record:
        seed = self._seed(row, sample)
        known, max_tokens, prompt_ids = await asyncio.to_thread(self._known, row, sample, seed)
        record = result_of(row, sample)
        if self.traces is not None:
            record["shared"] = len(known)
        if known.ends is not None:
            record |= self._written(known, prompt_ids, seed, max_tokens)
        else:
            start = row.start
            sampling = {**self.sampling, "seed": seed}
            fields: dict[str, Any] = {"a": self.a, "b": self.b, "policy": self.policy, "measures": self.measures}
            if known:
                fields["given"] = {"token_ids": known.token_ids, "leads": known.leads}
                sampling["max_tokens"] = max_tokens - len(known)
            fields["sampling"] = sampling
            answer = await client.switch_generate(start.pop("prompt", None), **cast(SwitchFields, start | fields))
            if known:
                record |= self._written(known + of_answer(answer), prompt_ids, seed, max_tokens)
            else:
                record |= _answered(answer)
            if self.traces is not None:
                record["passes"] = [answer.usage.a_forwards, answer.usage.b_forwards]
        (scores,) = await self._scores([record["text"]], row)
        return record | {"metrics": scores}

    def _known(self, row: Row, sample: int, seed: int) -> tuple[Prefix, int, list[int]]:
        """What earlier runs have of this generation, its `max_tokens`, and the prompt."""
        earlier = [] if self.traces is None else self.traces.of(row.id, sample)
        if not earlier:
            return Prefix(), 0, []
        prompt_ids: list[int] = earlier[0]["prompt_ids"]
        written = map(of_record, earlier)
        policy = parse_policy(self.policy)
        known, _ = walk(policy, written, seed=seed, start=len(prompt_ids), measures=self.measures)
        stop = self.sampling.get("stop") or ()
        return known.settled([stop] if isinstance(stop, str) else stop), earlier[0].get("max_tokens", 0), prompt_ids

    def _written(self, whole: Prefix, prompt_ids: list[int], seed: int, max_tokens: int) -> Record:
        policy = parse_policy(self.policy)
        watched = whole.values[policy.watched]
        return {
            "text": whole.text,
            "token_ids": whole.token_ids,
            "tokens": whole.tokens,
            "prompt_ids": prompt_ids,
            "leads": whole.leads,
            "b_fraction": whole.leads.count("b") / len(whole.leads),
            "measure": policy.watched,
            "divergences": watched,
            "signals": {name: whole.values[name] for name in self.measures},
            "switches": switches(policy, whole.leads, watched),
            "finish_reason": whole.ends,
            "seed": seed,
            "max_tokens": max_tokens,
        }


def _answered(answer: SwitchResponse) -> Record:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "tokens": answer.tokens,
        "prompt_ids": answer.receipt.prompt_ids,
        "leads": answer.leads,
        "b_fraction": answer.b_fraction,
        "measure": answer.measure,
        "divergences": answer.divergences,
        "signals": answer.signals,
        "switches": [switch.model_dump(by_alias=True) for switch in answer.switches],
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "max_tokens": answer.receipt.sampling.max_tokens,
    }
