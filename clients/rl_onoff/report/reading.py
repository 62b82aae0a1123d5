"""Which runs a report is about, and what each is: A alone, B alone, switched, a control, a divergence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rl_onoff.divergence import swapped
from rl_onoff.errors import DataError
from rl_onoff.runs.folder import MANIFEST, read_manifest, read_results

Role = Literal["a", "b", "switched", "control", "sample", "divergence"]
Record = dict[str, Any]
_SWAPPED: Final = str.maketrans("ab", "ba")
_KNOWN: Final = ("sample", "switch", "divergence")
#: Direction, policy, and what else tells a condition of a sweep from others.
_Key = tuple[str, str, str]


@dataclass
class Part:
    """Run folders that are one thing: the same policy in the same direction over the same rows, once per seed.

    `b_leads`: the run's own "a" is the pair's B (direction `b_to_a`); `records` turns its leads and measures round, so
    that in a report B is always the tuned model. `control_of`: the label of the part whose share of tokens it matches.
    """

    label: str
    role: Role
    folders: list[Path]
    b_leads: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict)
    control_of: str | None = None
    metrics: tuple[str, ...] = ()
    units: str = "nats"
    #: Rows the service refused, of those that `records` came past.
    refused: int = 0

    @property
    def direction(self) -> str:
        """`a_to_b` or `b_to_a`."""
        return "b_to_a" if self.b_leads else "a_to_b"

    def records(self) -> Iterator[tuple[int, Record]]:
        """The seed of the run and the record, for every result that is no error; one at a time."""
        self.refused = 0
        for folder in self.folders:
            seed = _seed(folder)
            for record in read_results(folder):
                if "error" in record:
                    self.refused += 1
                    continue
                yield seed, _turned(record) if self.b_leads else record


@dataclass(frozen=True)
class Runs:
    """What a report is made of. `a`, `b`: the models' names, if a run has both. `notes`: what a reader must know."""

    title: str
    parts: list[Part]
    a: str | None
    b: str | None
    facts: list[tuple[str, str]]
    notes: list[str]

    def named(self, name: str) -> Part:
        """The part with this label, or in a folder of this name. Raises DataError."""
        for part in self.parts:
            if name == part.label or any(name == folder.name for folder in part.folders):
                return part
        known = ", ".join(f"{part.folders[0].name} ({part.label})" for part in self.parts)
        raise DataError(f"there is no condition {name!r}; there are {known}")

    def of(self, *roles: Role) -> list[Part]:
        """The parts in these roles, in the order of the runs."""
        return [part for part in self.parts if part.role in roles]


def read_runs(paths: Sequence[str | Path]) -> Runs:
    """What these run folders hold: of `sample`, `switch`, `divergence` and `sweep`. Raises DataError."""
    if not paths:
        raise DataError("a report needs a run's folder at least")
    manifests = {Path(path): read_manifest(path) for path in dict.fromkeys(map(Path, paths))}
    models = next((found for each in manifests.values() if len(found := _models(each)) == 2), [])
    parts: list[Part] = []
    facts: list[tuple[str, str]] = []
    notes: list[str] = []
    sources: dict[str, str] = {}
    runs: dict[str, Part] = {}
    sweeps: dict[str, dict[_Key, Part]] = {}
    for path, manifest in manifests.items():
        identity = manifest["identity"]
        command = identity.get("command")
        kin = _without_seed(identity)
        if command == "sweep":
            parts += _of_sweep(path, identity, notes, sweeps.setdefault(kin, {}))
        elif command in _KNOWN and _takes(runs.get(kin), path):
            runs[kin].folders.append(path)
        elif command in _KNOWN:
            parts.append(_of_run(path, identity, models))
            runs.setdefault(kin, parts[-1])
        else:
            raise DataError(f"{path} is a run of {command!r}; a report is made of {', '.join(_KNOWN)} and sweep")
        if command != "divergence":
            data = identity.get("data") or {}
            sources.setdefault(str(data.get("sha256") or data.get("fingerprint") or data), path.name)
        facts += _facts(path, manifest)
    if len(sources) > 1:
        notes.append(
            f"{' and '.join(sources.values())} are over different data: what is said of both is over the problems, "
            "by their ids, that each has."
        )
    _distinct(parts)
    names = [str(model.get("name")) for model in models] if models else [None, None]
    return Runs(", ".join(path.name for path in manifests), parts, names[0], names[1], facts, notes)


def _of_run(path: Path, identity: Mapping[str, Any], models: list[Mapping[str, Any]]) -> Part:
    settings = identity.get("settings") or {}
    command = identity["command"]
    metrics = tuple(settings.get("metrics") or ())
    own = identity.get("models") or []
    if command == "divergence":
        return Part(path.name, "divergence", [path], units=str(settings.get("units", "nats")))
    if command == "sample":
        name = str(own[0].get("name")) if own else path.name
        role: Role = "sample"
        for candidate, model in zip(("a", "b"), models, strict=False):
            if own and _same(own[0], model):
                role = "a" if candidate == "a" else "b"
        label = {"a": f"A alone ({name})", "b": f"B alone ({name})"}.get(role, name)
        return Part(label, role, [path], metrics=metrics)
    policy = settings.get("policy") or {}
    turned = len(own) == 2 and len(models) == 2 and _same(own[0], models[1]) and not _same(own[0], models[0])
    return _switched(path, policy, turned, metrics)


def _switched(path: Path, policy: Mapping[str, Any], b_leads: bool, metrics: tuple[str, ...]) -> Part:
    kind = policy.get("kind")
    label = _label(policy) + (", B leads" if b_leads else "")
    role: Role = "control" if kind == "random" else "switched"
    if kind in ("always_a", "always_b"):
        role = "a" if (kind == "always_a") != b_leads else "b"
        label = f"{role.upper()} alone"
    return Part(label, role, [path], b_leads, policy, metrics=metrics)


def _of_sweep(path: Path, identity: Mapping[str, Any], notes: list[str], found: dict[_Key, Part]) -> list[Part]:
    """Its conditions that are not in `found`, which has those of the same sweep by other seeds, and gets all."""
    metrics = tuple((identity.get("settings") or {}).get("metrics") or ())
    new: list[Part] = []
    key_of: dict[str, _Key] = {}
    for record in read_results(path):
        name, folder = str(record["id"]), path / str(record["id"])
        if folder.resolve().parent != path.resolve():
            raise DataError(f"{path}: {name!r} is no name of a condition")
        if not (folder / MANIFEST).is_file():
            notes.append(f"{path.name}: the folder of the condition {name} is not there; it is left out.")
            continue
        policy, b_leads = record.get("policy") or {}, record.get("direction") == "b_to_a"
        of = record.get("control_of")
        direction = "b_to_a" if b_leads else "a_to_b"
        budget = (record.get("calibration") or {}).get("budget")
        key = (direction, json.dumps(policy, sort_keys=True), str(budget or ""))
        if of is not None:
            key = (direction, "control", str(key_of.get(str(of), of)))
        if key in found and not _takes(found[key], folder):
            key = (*key[:2], str(folder))
        key_of[name] = key
        if key in found:
            found[key].folders.append(folder)
            continue
        part = _switched(folder, policy, b_leads, metrics)
        if part.role == "switched" and (share := _share(budget)):
            part.label += f" (budget {share})"
        if of is not None:
            policied = found.get(key_of.get(str(of), ("", "", "")))
            part.role, part.control_of = "control", policied.label if policied else str(of)
            part.label = f"random, as often as {part.control_of}"
        found[key] = part
        new.append(part)
    if not key_of:
        raise DataError(f"{path} is a sweep of which no condition is finished yet")
    return new


def _without_seed(identity: Mapping[str, Any]) -> str:
    """The same for runs that differ by their seed alone."""
    settings = {name: value for name, value in (identity.get("settings") or {}).items() if name != "seed"}
    return json.dumps({**identity, "settings": settings}, sort_keys=True)


def _takes(part: Part | None, folder: Path) -> bool:
    """Whether this is a run by another seed: by the same one its texts would count twice."""
    return part is not None and _seed(folder) not in map(_seed, part.folders)


def _distinct(parts: Iterable[Part]) -> None:
    """Labels are how a reader tells the parts apart."""
    seen: dict[str, int] = {}
    for part in parts:
        seen[part.label] = seen.get(part.label, 0) + 1
        if seen[part.label] > 1:
            part.label += f" [{part.folders[0].name}]"


def _facts(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    identity = manifest["identity"]
    settings = identity.get("settings") or {}
    models = " and ".join(f"{each.get('name')} ({each.get('fingerprint')})" for each in _models(manifest, least=1))
    data = identity.get("data") or {}
    yield (
        f"{path.name}",
        (
            f"{identity.get('command')} of {models or 'unnamed models'} over {data.get('source', 'unnamed data')}, "
            f"begun {manifest.get('created', 'at an unknown time')}, rl-onoff {manifest.get('version', 'unknown')}"
        ),
    )
    yield f"{path.name}: settings", json.dumps(settings, ensure_ascii=False, sort_keys=True)


def _models(manifest: Mapping[str, Any], least: int = 2) -> list[Mapping[str, Any]]:
    models = manifest["identity"].get("models") or []
    return models if len(models) >= least and all(isinstance(each, dict) for each in models) else []


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    key = "fingerprint" if one.get("fingerprint") and other.get("fingerprint") else "name"
    return one.get(key) is not None and one.get(key) == other.get(key)


def _label(policy: Mapping[str, Any]) -> str:
    rest = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in policy.items()]
    return " ".join([str(policy.get("kind", "switch")), *(each for each in rest if not each.startswith("kind="))])[:80]


def _turned(record: Record) -> Record:
    """A result of a run in which the pair's B was called A, as though it had been called B."""
    turned = dict(record)
    if isinstance(record.get("leads"), str):
        turned["leads"] = record["leads"].translate(_SWAPPED)
    if isinstance(record.get("measure"), str):
        turned["measure"] = swapped(record["measure"])
        if record["measure"] == "delta_logp":
            turned["divergences"] = _negated(record.get("divergences") or [])
    turned["signals"] = {
        swapped(name): _negated(column) if name == "delta_logp" else column
        for name, column in (record.get("signals") or {}).items()
    }
    return turned


def _negated(column: list[float | None]) -> list[float | None]:
    return [None if value is None else -value for value in column]


def _share(value: Any) -> str | None:
    return f"{100 * value:g}%" if isinstance(value, float) and 0 < value <= 1 else None


def _seed(folder: Path) -> int:
    seed = (read_manifest(folder)["identity"].get("settings") or {}).get("seed", 0)
    return seed if isinstance(seed, int) else 0
