"""Bounds of divergences from two runs of `distributions --top-k`: of one model each, over the same data.

No model is asked: what the runs have recorded is enough. Bounds are those of `rl_onoff.bounds.from_top_k`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from rl_onoff.bounds import BOUNDED, error, known_from_top_k
from rl_onoff.data.sources import RESULTS
from rl_onoff.data.spill import temporary
from rl_onoff.errors import DataError
from rl_onoff.runs.folder import key_of, read_manifest, read_results
from rl_onoff.runs.tasks import Record

_LACKS: Final = "row-missing"


class TopKRuns:
    """Two runs of `distributions --top-k` that may be compared: `a` of model A, `b` of model B.

    Raises DataError for runs of other commands, of values that are no log-probabilities, or of rows in shards, and for
    two that differ in more than the model and `top_k`. `identity` is what their comparison is a run of.
    """

    def __init__(self, a: str | Path, b: str | Path, measures: Sequence[str] = BOUNDED) -> None:
        if unknown := [name for name in measures if name not in BOUNDED]:
            raise DataError(f"no bounds are known for {', '.join(unknown)}; there are {', '.join(BOUNDED)}")
        self._a, self._b, self._measures = Path(a), Path(b), tuple(measures)
        of_a, of_b = (_identity(path) for path in (self._a, self._b))
        for what in ("settings", "data"):
            for name, (one, other) in _differences(_shared(of_a, what), _shared(of_b, what)):
                raise DataError(f"{self._a} and {self._b} differ in {what}.{name}: {one!r} and {other!r}")
        self._temperature = float(of_a["settings"].get("temperature", 1.0))
        self.identity = {
            "command": "bounds",
            "settings": {
                "measures": list(self._measures),
                "top_k": [each["settings"]["top_k"] for each in (of_a, of_b)],
                **_shared(of_a, "settings"),
            },
            "models": [*of_a["models"], *of_b["models"]],
            "data": of_a["data"],
        }

    def count(self) -> int:
        """How many results A's run has."""
        return sum(1 for _ in read_results(self._a))

    def records(self) -> Iterator[Record]:
        """A line of results for every row: `bounds` by measure, `lower` and `upper` at every token; None is infinite.

        KL has no `upper`. A row that only one run has is an error among the results. Raises DataError for rows that the
        models do not read as the same tokens.
        """
        with closing(_Index(self._b)) as index:
            for record in read_results(self._a):
                other = index.take(record)
                start = {"id": record["id"], "sample": record.get("sample", 0)}
                if other is None or "error" in record or "error" in other:
                    lacking = self._a if "error" in record else self._b
                    yield start | {"error": {"type": _LACKS, "detail": f"{lacking} has no such row"}}
                    continue
                yield start | self._bounds(record, other)
            for record in index.left():
                start = {"id": record["id"], "sample": record.get("sample", 0)}
                yield start | {"error": {"type": _LACKS, "detail": f"{self._a} has no such row"}}

    def _bounds(self, a: Record, b: Record) -> Record:
        for name in ("token_ids", "tokens", "vocab_size"):
            if a.get(name) != b.get(name):
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
        return {"token_ids": a["token_ids"], "tokens": a["tokens"], "bounds": found}

    def _off(self, values: Sequence[np.ndarray[Any, Any]]) -> float:
        """Of float32 rows divided by the temperature before they were normalised anew."""
        return max(float(error(each).max()) for each in values) / min(1.0, self._temperature)


def summarise_bounds(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of `TopKRuns.records`: means over all tokens, between which the mean of the measure lies; None where infinite."""
    results = failed = positions = 0
    sums: dict[str, dict[str, float]] = {}
    for record in records:
        if "error" in record:
            failed += 1
            continue
        results += 1
        positions += len(record["token_ids"])
        for name, columns in record["bounds"].items():
            of_measure = sums.setdefault(name, {})
            for end, column in columns.items():
                total = math.fsum(math.inf if value is None else value for value in column)
                of_measure[end] = of_measure.get(end, 0.0) + total
    count = max(1, positions)
    means = {name: {end: _finite(total / count) for end, total in ends.items()} for name, ends in sums.items()}
    return {"results": results, "failed": failed, "positions": positions, "bounds": means}


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
    found = dict(identity.get(what) or {})
    if what == "settings" or found.get("sha256") or found.get("fingerprint"):
        found.pop("source", None)
        found.pop("top_k", None)
    return found


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield name, (one.get(name), other.get(name))


def _values(top: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([-math.inf if value is None else value for value in top["values"]], dtype=np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
