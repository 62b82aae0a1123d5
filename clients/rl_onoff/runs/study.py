"""Studies: one data set under many policies, each with its random control. A run of runs.

A study's `results.jsonl` has a line per condition, and each condition is a run in a folder of its own beneath; so a
study that is killed goes on in the middle of the condition it was in.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from rl_onoff.client import AsyncClient
from rl_onoff.data import Columns, Prompting, Reader, open_source
from rl_onoff.errors import DataError, InvalidField, MissingDependency
from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Policy
from rl_onoff.runs.calibration import find_threshold, threshold_policy
from rl_onoff.runs.folder import RunFolder, read_results
from rl_onoff.runs.loop import Progress, bad_rows, execute, fingerprints, identity
from rl_onoff.runs.sharing import Traces
from rl_onoff.runs.summary import summarise
from rl_onoff.runs.tables import by_seed, table
from rl_onoff.runs.tasks import Record, SwitchTask
from rl_onoff.schemas.common import Request

Direction = Literal["a_to_b", "b_to_a"]
_BOOL: Final = "tag:yaml.org,2002:bool"
_NAME = re.compile(r"[^A-Za-z0-9=._+-]+")


class Study(Request):
    """What `rl-onoff sweep` reads. In `policies` every list is an axis of a grid; a field that is a list is one in it.

    `b_to_a`: B leads, and A takes over by the same rule. `control`: beside every policy its random control, with the
    share of tokens that the policy had for the other model. `budget` of a policy, in place of `on`: the share of tokens
    that its threshold shall spend (`runs.calibration`). `seeds`: everything once by each of them; a condition holds
    them all. `measures`: recorded for every token beside what the policies read.
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
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1024)] = Field(default=[])
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
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is there twice")
        if self.seeds and self.seed:
            raise ValueError("give either seed or seeds")
        return self

    def conditions(self) -> Iterator[Condition]:
        """A alone and B alone first, then every policy in every direction. Raises InvalidField for a wrong policy."""
        yield Condition("a_alone", "a_to_b", {"kind": "always_a"})
        yield Condition("b_alone", "a_to_b", {"kind": "always_b"})
        for direction in self.directions:
            for policy in (each for given in self.policies for each in _grid(given)):
                _parsed(policy)  # wrong before hours of work, not after
                yield Condition(f"{direction}-{_name(policy)}", direction, policy, control=self.control)

    @property
    def recorded(self) -> list[str]:
        """The measures recorded in every condition, so that one tells what another's policy decides."""
        policies = [_parsed(condition.policy) for condition in self.conditions()]
        return sorted({*self.measures, *(name for each in policies for name in (each.watched, *each.signals))})

    def task(self, a: str | None, b: str | None, policy: Mapping[str, Any], traces: Traces | None) -> SwitchTask:
        """The generations of a policy with `a` in the lead."""
        return SwitchTask(
            metrics=tuple(self.metrics),
            a=a,
            b=b,
            policy=policy,
            n=self.n,
            seed=self.seed,
            seeds=tuple(self.seeds),
            sampling=self.sampling,
            measures=tuple(self.recorded),
            traces=traces,
        )

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
    client: AsyncClient,
    study: Study,
    output: Path,
    carry: Carry,
    *,
    resume: bool,
    report: Callable[[Record], None],
    share: bool = True,
) -> list[Record]:
    """All conditions, in order; `report` gets each when it is done. Raises what a run raises.

    With `share` what conditions have in common is generated once; the results are the same without.
    """
    reader = study.reader()
    models = await fingerprints(client, (study.a, study.b))
    settings = study.model_dump(mode="json", exclude={"data"})
    asked = {"command": "sweep", "settings": settings, "models": models, "data": reader.identity()}
    a, b = (str(model["name"]) for model in models)
    with RunFolder.open(output, asked, resume=resume) as folder, ExitStack() as stack:
        done = {record["id"]: record for record in read_results(output)}
        directions: tuple[Direction, ...] = ("a_to_b", "b_to_a")
        roles = {"a_to_b": (a, b), "b_to_a": (b, a)}
        traces = {each: stack.enter_context(Traces()) if share else None for each in directions}

        async def write(run: Path, direction: Direction, policy: Mapping[str, Any]) -> dict[str, Any]:
            of = traces[direction]
            summary = await carry(study.task(*roles[direction], policy, of), run, reader)
            if of is not None:
                of.add(run)
            return summary

        async def calibrated(condition: Condition) -> dict[str, Any]:
            first = first_pass(condition)
            if condition.direction != "a_to_b":
                await write(first, condition.direction, {"kind": "always_a"})

            async def attempt(number: int, policy: Mapping[str, Any]) -> tuple[Path, float]:
                run = nth_pass(condition, number)
                return run, (await write(run, condition.direction, policy)).get("b_fraction", 0.0)

            return await find_threshold(condition.policy, condition.policy["budget"], first, attempt)

        def first_pass(condition: Condition) -> Path:
            if condition.direction == "a_to_b":
                return output / "a_alone"
            return output / "calibration" / f"{condition.direction}-alone"

        def nth_pass(condition: Condition, number: int) -> Path:
            return output / "calibration" / f"{condition.name}-pass{number + 1}"

        async def one(condition: Condition, of: str | None = None) -> Record:
            name = condition.name
            if name in done:
                if (known := traces[condition.direction]) is not None:
                    if "calibration" in done[name]:
                        known.add(first_pass(condition))
                        for number in range(len(done[name]["calibration"]["passes"])):
                            known.add(nth_pass(condition, number))
                    known.add(output / name)
            else:
                policy = dict(condition.policy)
                record: Record = {"id": name, "direction": condition.direction}
                if "budget" in policy:
                    record["calibration"] = found = await calibrated(condition)
                    del policy["budget"]
                    policy["on"] = found["on"]
                summary = await write(output / name, condition.direction, policy)
                record |= {"policy": policy, "control_of": of, "share": summary.get("b_fraction", 0.0)}
                if study.seeds:
                    record["by_seed"] = by_seed(read_results(output / name), study.seeds, study.n, study.metrics)
                done[name] = record | {"summary": summary}
                folder.append([done[name]])
            report(done[name])
            return done[name]

        for each in study.conditions():
            found = await one(each)
            if each.control:
                rate = {"kind": "random", "rate": found["share"]}
                await one(Condition(f"{each.name}-control", each.direction, rate), each.name)
        records = list(done.values())
        folder.write_summary({"conditions": table(records, study.metrics)})
    return records


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
        summary = summarise(read_results(folder), task.metrics)
        summary["bad_rows"] = bad_rows(progress, read_results(folder))["bad_rows"]
        run.write_summary(summary)
    return summary


def _parsed(policy: Mapping[str, Any]) -> Policy:
    if "budget" not in policy:
        return parse_policy(policy)
    budget = policy["budget"]
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < 1:
        raise InvalidField("a budget is a share of tokens, between 0 and 1", field="policy")
    return threshold_policy(policy)


def _grid(policy: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in policy.values()]
    for values in product(*axes):
        yield dict(zip(policy, values, strict=True))


def _name(policy: Mapping[str, Any]) -> str:
    rest = [f"{key}={value}" for key, value in policy.items() if key != "kind"]
    return _NAME.sub("_", "-".join([str(policy.get("kind", "")), *rest]))[:120]
