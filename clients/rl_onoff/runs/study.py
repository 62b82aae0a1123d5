"""Studies: one data set under many policies, each with its random control. A run of runs.

A study's `results.jsonl` has a line per condition, and each condition is a run in a folder of its own beneath; so a
study that is killed goes on in the middle of the condition it was in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from rl_onoff.client import AsyncClient
from rl_onoff.data import Columns, Prompting, Reader, open_source
from rl_onoff.errors import DataError, InvalidField, MissingDependency
from rl_onoff.kinds import parse_policy
from rl_onoff.runs.folder import RunFolder, read_results
from rl_onoff.runs.loop import Progress, execute, fingerprints, identity
from rl_onoff.runs.summary import summarise
from rl_onoff.runs.tasks import Record, SwitchTask
from rl_onoff.schemas.common import Request

Direction = Literal["a_to_b", "b_to_a"]
_BOOL: Final = "tag:yaml.org,2002:bool"
_NAME = re.compile(r"[^A-Za-z0-9=._+-]+")


class Study(Request):
    """What `rl-onoff sweep` reads. In `policies` every list is an axis of a grid; a field that is a list is one in it.

    `b_to_a`: B leads, and A takes over by the same rule. `control`: beside every policy its random control, with the
    share of tokens that the policy had for the other model.
    """

    data: str
    policies: Annotated[list[dict[str, Any]], Field(min_length=1)]
    a: str | None = None
    b: str | None = None
    directions: Annotated[list[Direction], Field(min_length=1)] = Field(default=["a_to_b"])
    control: bool = True
    limit: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    sampling: dict[str, Any] = Field(default={})
    metrics: list[str] = Field(default=[])
    measures: list[str] = Field(default=[], description="recorded for every token beside the policy's own")
    columns: dict[Literal["id", "prompt", "messages", "solution", "reference"], str] = Field(default={})
    template: str | None = None
    chat: bool = False
    system: str | None = None
    reference_after: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        names = [condition.name for condition in self.conditions()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"policies: {twice} is there twice")
        return self

    def conditions(self) -> Iterator[Condition]:
        """A alone and B alone first, then every policy in every direction. Raises InvalidField for a wrong policy."""
        yield Condition("a_alone", "a_to_b", {"kind": "always_a"})
        yield Condition("b_alone", "a_to_b", {"kind": "always_b"})
        for direction in self.directions:
            for policy in (each for given in self.policies for each in _grid(given)):
                parse_policy(policy)  # wrong before hours of work, not after
                yield Condition(f"{direction}-{_name(policy)}", direction, policy, control=self.control)

    def reader(self) -> Reader:
        """The rows."""
        needs = SwitchTask(metrics=tuple(self.metrics)).needs
        prompting = Prompting(self.template, self.chat, self.system, self.reference_after)
        return Reader(open_source(self.data), needs, Columns(**self.columns), prompting, self.limit)


@dataclass(frozen=True)
class Condition:
    """One policy in one direction; `control`: its random control comes after it."""

    name: str
    direction: Direction
    policy: Mapping[str, Any]
    control: bool = False


def parse_study(text: str) -> Study:
    """A study of this YAML (or JSON). Raises DataError that names the field."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependency.of("pyyaml", "data", "reading a study") from error

    class Loader(yaml.SafeLoader):
        """YAML 1.2's booleans: in 1.1 `on` and `off`, which policies have, are two more."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, found) for tag, found in resolvers if tag != _BOOL or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return Study.model_validate(yaml.load(text, Loader))  # noqa: S506 — a SafeLoader
    except yaml.YAMLError as error:
        raise DataError(f"the study is no YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"the study: {f'{where}: ' if where else ''}{first['msg']}") from None
    except InvalidField as error:
        raise DataError(f"the study: {error.detail}") from None


#: Carries out a task over the study's rows in a folder, and gives its summary.
Carry = Callable[[SwitchTask, Path, Reader], Awaitable[dict[str, Any]]]


async def sweep(
    client: AsyncClient, study: Study, output: Path, carry: Carry, *, resume: bool, report: Callable[[Record], None]
) -> list[Record]:
    """All conditions, in order; `report` gets each when it is done. Raises what a run raises."""
    reader = study.reader()
    models = await fingerprints(client, (study.a, study.b))
    asked = {
        "command": "sweep",
        "settings": study.model_dump(mode="json", exclude={"data"}),
        "models": models,
        "data": reader.identity(),
    }
    a, b = (model["name"] for model in models)
    with RunFolder.open(output, asked, resume=resume) as folder:
        done = {record["id"]: record for record in read_results(output)}

        async def one(name: str, direction: Direction, policy: Mapping[str, Any], of: str | None = None) -> Record:
            if name not in done:
                leads, other = (a, b) if direction == "a_to_b" else (b, a)
                task = SwitchTask(
                    metrics=tuple(study.metrics),
                    a=leads,
                    b=other,
                    policy=policy,
                    n=study.n,
                    seed=study.seed,
                    sampling=study.sampling,
                    measures=tuple(study.measures),
                )
                summary = await carry(task, output / name, reader)
                share = summary.get("b_fraction", 0.0)
                done[name] = {"id": name, "direction": direction, "policy": dict(policy), "control_of": of}
                done[name] |= {"share": share, "summary": summary}
                folder.append([done[name]])
            report(done[name])
            return done[name]

        for each in study.conditions():
            found = await one(each.name, each.direction, each.policy)
            if each.control:
                rate = {"kind": "random", "rate": found["share"]}
                await one(f"{each.name}-control", each.direction, rate, each.name)
        records = list(done.values())
        folder.write_summary({"conditions": table(records, study.metrics)})
    return records


def table(records: list[Record], metrics: list[str]) -> list[dict[str, Any]]:
    """A flat line per condition: the share of the model that takes over, and every metric with its interval.

    `recovery` of a metric is (value - A's)/(B's - A's). None stands for what is not defined or not finite.
    """
    found = {record["id"]: record["summary"].get("metrics", {}) for record in records}
    lines = []
    for record in records:
        line = {"condition": record["id"], "direction": record["direction"], "control_of": record["control_of"]}
        line |= {"policy": json.dumps(record["policy"]), "share": record["share"]}
        line |= {name: record["summary"][name] for name in ("results", "failed", "tokens")}
        for name in metrics:
            own = found[record["id"]].get(name, {})
            value, low, high = (own.get(key) for key in ("value", "low", "high"))
            line |= {name: value, f"{name} low": low, f"{name} high": high}
            alone = [found[each].get(name, {}).get("value") for each in ("a_alone", "b_alone")]
            line[f"{name} recovery"] = _recovery(value, *alone)
        lines.append(line)
    return lines


def _recovery(value: float | None, a: float | None, b: float | None) -> float | None:
    return None if value is None or a is None or b is None or a == b else (value - a) / (b - a)


async def carry_out(
    client: AsyncClient,
    task: SwitchTask,
    folder: Path,
    reader: Reader,
    *,
    concurrency: int = 16,
    skip_bad: bool = False,
    report: Callable[[Progress, list[Record]], None] = lambda progress, records: None,
) -> dict[str, Any]:
    """One condition as a run of its own, begun or gone on with; its summary."""
    with RunFolder.open(folder, await identity(client, task, reader), resume=True) as run:
        progress = await execute(client, task, reader, run, concurrency=concurrency, skip_bad=skip_bad, report=report)
        summary = summarise(read_results(folder), task.metrics) | {"bad_rows": progress.bad_count}
        run.write_summary(summary)
    return summary


def _grid(policy: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in policy.values()]
    for values in product(*axes):
        yield dict(zip(policy, values, strict=True))


def _name(policy: Mapping[str, Any]) -> str:
    rest = [f"{key}={value}" for key, value in policy.items() if key != "kind"]
    return _NAME.sub("_", "-".join([str(policy.get("kind", "")), *rest]))[:120]
