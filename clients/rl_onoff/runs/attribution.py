"""Which switches mattered: each is undone alone, and the text written again.

A switch is a run of tokens that B led. Undone, A leads them; all others stay where they were, by a `schedule` of their
positions, with the same seed, so that nothing else differs. Up to the switch the text is as it was and is not written
again. Once the texts part, the positions are those of another text: what is told is the effect of that one change under
the schedule, not what the policy would have done next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

from rl_onoff.client import AsyncClient
from rl_onoff.data import Row
from rl_onoff.data.sources import RESULTS
from rl_onoff.data.spill import Keys
from rl_onoff.errors import DataError, RunMismatch
from rl_onoff.fields import SwitchFields
from rl_onoff.runs.folder import read_manifest, read_results
from rl_onoff.runs.loop import fingerprints
from rl_onoff.runs.sharing import Prefix, of_answer, of_record
from rl_onoff.runs.tasks import Record, Scored, Task

#: Switches undone per generation, unless another number is asked for.
MOST: Final = 16


@dataclass(frozen=True, slots=True)
class Takeover:
    """Tokens `[start, end)` that B led, and what the policy watched at the first of them; None: infinite."""

    start: int
    end: int
    value: float | None


@dataclass(frozen=True, slots=True)
class SwitchedRow(Row):
    """A generation of a run, with all that its record says. Its id is the row's and the sample's: `demo-0001#0`."""

    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def takeovers(self) -> list[Takeover]:
        """All, in order."""
        leads, found, start = self.record["leads"], [], 0
        while (start := leads.find("b", start)) >= 0:
            end = start + len(leads[start:]) - len(leads[start:].lstrip("b"))
            found.append(Takeover(start, end, self.record["divergences"][start]))
            start = end
        return found

    def undone(self, most: int) -> list[tuple[int, Takeover]]:
        """The takeovers to be undone with their numbers: of more than `most` those with the greatest values, first."""
        numbered = list(enumerate(self.takeovers))
        if len(numbered) <= most:
            return numbered
        greatest = sorted(numbered, key=lambda each: (each[1].value is not None, -(each[1].value or 0.0), each[0]))
        return sorted(greatest[:most])


class SwitchedRun:
    """The generations of a run of `switch`, or of a condition of a sweep. Raises DataError for another command's."""

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path, self.limit = Path(path), limit
        self.manifest = read_manifest(path)["identity"]
        if self.manifest.get("command") != "switch":
            raise DataError(
                f"{path} is a run of {self.manifest.get('command')}: attribute takes one of switch, or a condition's "
                "folder in a sweep's"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Policy, sampling, seed, metrics of the run."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    @property
    def models(self) -> tuple[str, str]:
        """The names of A and B."""
        a, b = (str(model["name"]) for model in self.manifest["models"])
        return a, b

    def __iter__(self) -> Iterator[SwitchedRow]:
        for record in islice((each for each in read_results(self.path) if "error" not in each), self.limit):
            yield SwitchedRow(
                f"{record['id']}#{record.get('sample', 0)}",
                f"{self.path}: {record['id']}, sample {record.get('sample', 0)}",
                prompt_ids=record["prompt_ids"],
                reference=record.get("reference"),
                record=record,
            )

    def count(self) -> int:
        """How many generations there are."""
        return sum(1 for _ in self)

    async def identity(self, client: AsyncClient, task: Attribution) -> dict[str, Any]:
        """What the attribution is one of. Raises RunMismatch when the service serves other models than the run had."""
        models = await fingerprints(client, task.models)
        if models != self.manifest["models"]:
            raise RunMismatch(f"{self.path} was written by {self.manifest['models']}, the service serves {models}")
        digest = hashlib.sha256()
        with (self.path / RESULTS).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        data = {"source": self.path.name, "sha256": digest.hexdigest()}
        return {"command": task.command, "settings": task.settings(), "models": models, "data": data}


@dataclass(frozen=True)
class Attribution(Scored, Task):
    """A generation for every switch undone; the number of a result's sample is the switch's. `most`: per row."""

    a: str | None = None
    b: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    most: int = MOST

    command = "attribute"
    needs = ("prompt",)

    @classmethod
    def of(cls, run: SwitchedRun, metrics: Collection[str] = (), most: int = MOST) -> Attribution:
        """By the run's own sampling, and its metrics unless others are named."""
        a, b = run.models
        names = tuple(metrics) or tuple(run.settings["metrics"])
        return cls(metrics=names, a=a, b=b, sampling=run.settings["sampling"], most=most)

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.a, self.b)

    def settings(self) -> dict[str, Any]:
        return {"sampling": dict(self.sampling), "metrics": list(self.metrics), "most": self.most}

    def samples_of(self, row: Row) -> Collection[int]:
        return [number for number, _ in cast(SwitchedRow, row).undone(self.most)]

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        row = cast(SwitchedRow, row)
        written = of_record(row.record)
        if written.ends is None:
            raise DataError(f"{row.where}: written by an older version, which kept too little of it")
        if "reference" in self._needs() and row.reference is None:
            raise DataError(f"{row.where} has no reference, which one of {', '.join(self.metrics)} needs")
        (before,) = await self._scores([row.record["text"]], row)
        takeovers = dict(row.undone(self.most))
        return [await self._undo(client, row, written, number, takeovers[number], before) for number in sorted(missing)]

    async def _undo(
        self,
        client: AsyncClient,
        row: SwitchedRow,
        written: Prefix,
        number: int,
        takeover: Takeover,
        before: Mapping[str, float],
    ) -> Record:
        record = row.record
        stop = self.sampling.get("stop") or ()
        known = written.cut(takeover.start).settled([stop] if isinstance(stop, str) else stop)
        kept = [at for at, lead in enumerate(record["leads"]) if lead == "b"]
        kept = [at for at in kept if not takeover.start <= at < takeover.end]
        sampling = {**self.sampling, "seed": record["seed"], "max_tokens": record["max_tokens"] - len(known)}
        fields: dict[str, Any] = {"a": self.a, "b": self.b, "prompt_ids": record["prompt_ids"], "sampling": sampling}
        fields["policy"] = {"kind": "schedule", "positions": kept}
        if known:
            fields["given"] = {"token_ids": known.token_ids, "leads": known.leads}
        answer = await client.switch_generate(**cast(SwitchFields, fields))
        rest = of_answer(answer)
        ids, text = [*known.token_ids, *rest.token_ids], known.text + answer.text
        (after,) = await self._scores([text], row)
        return {
            "id": row.id,
            "sample": number,
            "start": takeover.start,
            "end": takeover.end,
            "of": len(record["token_ids"]),
            "value": takeover.value,
            "takeovers": len(row.takeovers),
            "token": written.tokens[takeover.start],
            "prompt_ids": record["prompt_ids"],
            "text": text,
            "token_ids": ids,
            "leads": known.leads + rest.leads,
            "finish_reason": answer.finish_reason,
            "first_difference": first_difference(record["token_ids"], ids),
            "shared": len(known),
            "metrics": after,
            "change": {name: value - before[name] for name, value in after.items()},
        }


def first_difference(one: list[int], other: list[int]) -> int | None:
    """The first position at which two lists differ, be it that one ends there; None when they are the same."""
    if one == other:
        return None
    same = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(same) if a != b), min(len(one), len(other)))


def summarise_attribution(run: SwitchedRun, results: Iterable[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """How many switches were undone, how many of them changed a token, and how many moved each metric, and where to.

    Of the run's generations alone: with a smaller limit than before there are results of others.
    """
    with closing(Keys()) as counted:
        generations = takeovers = left_out = 0
        for row in run:
            count = len(row.takeovers)
            generations, takeovers, left_out = generations + 1, takeovers + count, left_out + max(0, count - most)
            counted.add((row.id,))
        moved, counts = _moved(each for each in results if (str(each["id"]),) in counted)
    counts = {"generations": generations, "takeovers": takeovers, "left_out": left_out} | counts
    return {**counts, "metrics": moved}


def _moved(results: Iterable[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Of each metric how often it was lowered and raised; and the counts of the results themselves."""
    undone = failed = changed = tokens = shared = 0
    moved: dict[str, dict[str, float]] = {}
    for record in results:
        if "error" in record:
            failed += 1
            continue
        undone += 1
        changed += record["first_difference"] is not None
        tokens += len(record["token_ids"])
        shared += record["shared"]
        for name, change in record["change"].items():
            each = moved.setdefault(name, {"lowered": 0, "raised": 0, "mean_change": 0.0})
            each["lowered"] += change < 0
            each["raised"] += change > 0
            each["mean_change"] += change
    for each in moved.values():
        each["mean_change"] /= undone
    counts = {"undone": undone, "failed": failed, "changed_text": changed, "tokens": tokens, "shared_tokens": shared}
    return moved, counts
