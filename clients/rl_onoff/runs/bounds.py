"""Bounds of divergences from two runs of `distributions --top-k`: of one model each, over the same data.

No model is asked: what the runs have recorded is enough. Bounds are those of `rl_onoff.bounds.from_top_k`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from rl_onoff.bounds import BOUNDED, error, known_from_top_k
from rl_onoff.data import open_source
from rl_onoff.data.sources import RESULTS
from rl_onoff.data.spill import Key, temporary
from rl_onoff.errors import DataError
from rl_onoff.runs.folder import key_of, read_manifest, read_results
from rl_onoff.runs.scoring import UNTOLD, Distributions
from rl_onoff.runs.tasks import Record
from rl_onoff.runs.tokens import Origins

_LACKS: Final = "row-missing"
#: Settings that a manifest may leave out, and what they are then.
_DEFAULTS: Final[dict[str, Any]] = {
    "temperature": Distributions.temperature,
    "prompt_mode": Distributions.prompt_mode,
    "merge_eos": Distributions.merge_eos,
}


class TopKRuns:
    """Two runs of `distributions --top-k` that may be compared: `a` of model A, `b` of model B.

    Raises DataError for runs of other commands, of values that are no log-probabilities, or of rows in shards, and for
    two that differ in more than the model and `top_k`. `identity` is what their comparison is a run of: of the results
    as they are now, for a run that goes on may yet bring rows.
    """

    def __init__(self, a: str | Path, b: str | Path, measures: Sequence[str] = BOUNDED) -> None:
        if unknown := [name for name in measures if name not in BOUNDED]:
            raise DataError(f"no bounds are known for {', '.join(unknown)}; there are {', '.join(BOUNDED)}")
        self._a, self._b, self._measures = Path(a), Path(b), tuple(measures)
        of_a, of_b = (_identity(path) for path in (self._a, self._b))
        for what in ("settings", "data"):
            for name, (one, other) in _differences(_shared(of_a, what), _shared(of_b, what)):
                raise DataError(f"{self._a} and {self._b} differ in {what}.{name}: {one!r} and {other!r}")
        settings = _shared(of_a, "settings")
        self._temperature = float(settings["temperature"])
        self.identity = {
            "command": "bounds",
            "settings": {
                "measures": list(self._measures),
                "top_k": [each["settings"]["top_k"] for each in (of_a, of_b)],
                **settings,
            },
            "models": [*of_a["models"], *of_b["models"]],
            "data": of_a["data"],
            "results": [open_source(path).identity()["sha256"] for path in (self._a, self._b)],
        }

    def count(self) -> int:
        """How many results A's run has."""
        return sum(1 for _ in read_results(self._a))

    def records(self, done: Collection[Key] = ()) -> Iterator[Record]:
        """A line of results for every row: `bounds` by measure, `lower` and `upper` at every token; None is infinite.

        KL has no `upper`. A row that a run lacks, or has an error for, is an error among the results. `provenance` has
        what the runs tell of theirs, as `a_...` and `b_...`. Rows in `done` are left out. Raises DataError for rows
        that the models do not read as the same tokens.
        """
        for record, a, b in self._pairs():
            if key_of(record) in done:
                continue
            start = {"id": record["id"], "sample": record.get("sample", 0)}
            if a is None or b is None or "error" in a or "error" in b:
                faults = [fault for path, each in ((self._a, a), (self._b, b)) if (fault := _fault(path, each))]
                detail = "; ".join(fault["detail"] for fault in faults)
                yield start | {"error": {"type": faults[0]["type"], "detail": detail}}
            else:
                yield start | self._bounds(a, b)

    def _pairs(self) -> Iterator[tuple[Record, Record | None, Record | None]]:
        """A's results, then B's that A lacks: either, and both of that row."""
        with closing(_Index(self._b)) as index:
            for record in read_results(self._a):
                yield record, record, index.take(record)
            for record in index.left():
                yield record, None, record

    def _bounds(self, a: Record, b: Record) -> Record:
        of_a, of_b = _tokens_of(a), _tokens_of(b)
        for name in of_a:
            if name in of_b and of_a[name] != of_b[name]:
                raise DataError(f"{self._a} and {self._b}: row {a['id']} has other {name}: no shared vocabulary")
        found: dict[str, dict[str, list[float | None]]] = {name: {} for name in self._measures}
        for place, (top_a, top_b) in enumerate(zip(a["top"], b["top"], strict=True)):
            try:
                values = [_values(top) for top in (top_a, top_b)]
                known = known_from_top_k(
                    np.array(top_a["ids"]), values[0], np.array(top_b["ids"]), values[1], precision=self._off(values)
                )
            except ValueError as wrong:
                raise DataError(f"{self._a} and {self._b}: row {a['id']}, token {place}: {wrong}") from None
            for name, column in found.items():
                bounds = known.bounds(name)
                column.setdefault("lower", []).append(_finite(bounds.lower))
                if not name.startswith("kl"):
                    column.setdefault("upper", []).append(bounds.upper)
        origin = {
            f"{side}_{name}": value
            for side, record in (("a", a), ("b", b))
            for name, value in record.get("provenance", {}).items()
        }
        return {"token_ids": a["token_ids"], "tokens": a["tokens"], "bounds": found, "provenance": origin}

    def _off(self, values: Sequence[np.ndarray[Any, Any]]) -> float:
        """Of float32 rows divided by the temperature before they were normalised anew."""
        return max(float(error(each).max()) for each in values) / min(1.0, self._temperature)


def summarise_bounds(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of `TopKRuns.records`: means over all tokens, between which the mean of the measure lies; None where infinite.

    `provenance` and `provenances` are as in `summarise_distributions`, of both runs' results: `a_...` and `b_...`.
    """
    results = failed = positions = 0
    origins, untold = Origins(), {f"{side}_{name}": None for side in "ab" for name in UNTOLD}
    sums: dict[str, dict[str, float]] = {}
    for record in records:
        if "error" in record:
            failed += 1
            continue
        results += 1
        origins.add({**untold, **record.get("provenance", {})})
        positions += len(record["token_ids"])
        for name, columns in record["bounds"].items():
            of_measure = sums.setdefault(name, {})
            for end, column in columns.items():
                total = math.fsum(math.inf if value is None else value for value in column)
                of_measure[end] = of_measure.get(end, 0.0) + total
    count = max(1, positions)
    means = {name: {end: _finite(total / count) for end, total in ends.items()} for name, ends in sums.items()}
    summary = {"results": results, "failed": failed, "positions": positions, "bounds": means}
    return summary | origins.summary() if results else summary


class _Index:
    """The results of a run by their keys, each taken once. The index is on the disk, whatever their number."""

    def __init__(self, path: Path) -> None:
        self._file = (path / RESULTS).open("rb")
        self._database = temporary()
        self._database.execute("CREATE TABLE places (key TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        place = 0
        for record, line in zip(read_results(path), self._file, strict=False):
            self._database.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (json.dumps(key_of(record)), place))
            place += len(line)

    def take(self, record: Record) -> Record | None:
        key = json.dumps(key_of(record))
        found = self._database.execute("SELECT place FROM places WHERE key = ?", (key,)).fetchone()
        self._database.execute("DELETE FROM places WHERE key = ?", (key,))
        return None if found is None else self._at(found[0])

    def left(self) -> Iterator[Record]:
        """Those nobody took."""
        for (place,) in self._database.execute("SELECT place FROM places ORDER BY place"):
            yield self._at(place)

    def close(self) -> None:
        self._database.close()
        self._file.close()

    def _at(self, place: int) -> Record:
        self._file.seek(place)
        record: Record = json.loads(self._file.readline())
        return record


def _identity(path: Path) -> dict[str, Any]:
    identity: dict[str, Any] = read_manifest(path)["identity"]
    settings = identity.get("settings") or {}
    if identity.get("command") != "distributions":
        raise DataError(f"{path} is a run of {identity.get('command')!r}; bounds are made of two of distributions")
    if settings.get("top_k") is None or "format" in settings:
        raise DataError(f"{path} has its rows in shards; bounds are made of runs with --top-k and --format jsonl")
    if settings.get("kind") != "logprobs":
        raise DataError(f"{path} holds {settings.get('kind')}; bounds are made of logprobs")
    return identity


def _shared(identity: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What two runs must have in common: of a file it is what it holds, not where it lies."""
    found = (_DEFAULTS if what == "settings" else {}) | (identity.get(what) or {})
    if what == "settings" or found.get("sha256") or found.get("fingerprint"):
        found.pop("source", None)
        found.pop("top_k", None)
    return found


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield name, (one.get(name), other.get(name))


def _tokens_of(record: Record) -> dict[str, Any]:
    """What a result's rows are over, as far as it tells: older ones have no `vocab_size`, and no provenance."""
    merged = {name: ids for name, ids in record.get("provenance", {}).items() if name == "merged_ids"}
    return {name: record[name] for name in ("token_ids", "tokens", "vocab_size") if name in record} | merged


def _fault(path: Path, record: Record | None) -> dict[str, str] | None:
    """Why the run at `path` has no rows here; None where it has."""
    if record is None:
        return {"type": _LACKS, "detail": f"{path} has no such row"}
    if "error" not in record:
        return None
    return {"type": record["error"]["type"], "detail": f"{path}: {record['error']['detail']}"}


def _values(top: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([-math.inf if value is None else value for value in top["values"]], dtype=np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
