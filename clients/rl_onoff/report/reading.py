"""Which conditions finished runs hold: of one run, of several, or of a sweep's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl_onoff.errors import DataError
from rl_onoff.runs.folder import read_manifest, read_results
from rl_onoff.runs.summary import summarise
from rl_onoff.runs.tokens import summarise_divergence

Role = Literal["a_alone", "b_alone", "policy", "control", "sample", "divergence", "distributions"]
#: Of a policy that only one of the models writes under.
_ALONE: Mapping[str, Role] = {"always_a": "a_alone", "always_b": "b_alone", "random": "control"}


@dataclass(frozen=True, slots=True)
class Condition:
    """One run: what was asked, and what came out as `rl_onoff.runs.summarise` says it.

    `share` is that of the tokens the model that takes over wrote: B's, in the direction `b_to_a` A's. None where
    nothing was written by two.
    """

    name: str
    folder: Path
    role: Role
    direction: str
    policy: Mapping[str, Any] | None
    control_of: str | None
    share: float | None
    summary: Mapping[str, Any]
    models: tuple[str, ...]

    def results(self) -> Iterator[dict[str, Any]]:
        """Its results that are no errors, in the order of the file."""
        return (record for record in read_results(self.folder) if "error" not in record)


def conditions(runs: Sequence[str | Path]) -> list[Condition]:
    """The conditions of these folders, in the order given; a sweep's in its own.

    A run of `sample` counts as A or B alone where a run of `switch` among them has that model. Raises DataError for
    what is no run, or holds no result.
    """
    found: list[Condition] = []
    for run in runs:
        path = Path(run)
        identity = read_manifest(path)["identity"]
        found += _swept(path, identity) if identity["command"] == "sweep" else [_single(path, identity)]
    pairs = {each.models for each in found if each.role in ("policy", "control", "a_alone", "b_alone")}
    return [_alone(each, pairs) for each in found]


def _swept(path: Path, identity: Mapping[str, Any]) -> list[Condition]:
    models = tuple(str(model["name"]) for model in identity["models"])
    found = []
    for record in read_results(path):
        name, policy = str(record["id"]), record["policy"]
        role: Role = "control" if record["control_of"] is not None else _ALONE.get(policy["kind"], "policy")
        place = path / name
        if place.resolve().parent != path.resolve():
            raise DataError(f"{path}: {name!r} is no name of a condition")
        share = record["share"]
        found.append(
            Condition(
                name, place, role, record["direction"], policy, record["control_of"], share, record["summary"], models
            )
        )
    if not found:
        raise DataError(f"{path} holds no condition that is done")
    return found


def _single(path: Path, identity: Mapping[str, Any]) -> Condition:
    command, settings = identity["command"], identity["settings"]
    models = tuple(str(model["name"]) for model in identity["models"])
    policy = settings.get("policy")
    role: Role = _ALONE.get(policy["kind"], "policy") if policy else command
    if command == "divergence":
        summary = summarise_divergence(read_results(path))
    else:
        summary = summarise(read_results(path), settings.get("metrics", ()))
    if not summary["results"]:
        raise DataError(f"{path} holds no result")
    share = summary.get("b_fraction", 0.0) if policy else None
    return Condition(path.name, path, role, "a_to_b", policy, None, share, summary, models)


def _alone(condition: Condition, pairs: set[tuple[str, ...]]) -> Condition:
    if condition.role != "sample":
        return condition
    role: Role = "sample"
    for a, b in pairs:
        role = "a_alone" if condition.models == (a,) else "b_alone" if condition.models == (b,) else role
    share = {"a_alone": 0.0, "b_alone": 1.0}.get(role)
    return Condition(
        condition.name,
        condition.folder,
        role,
        condition.direction,
        None,
        None,
        share,
        condition.summary,
        condition.models,
    )
