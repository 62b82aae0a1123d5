"""Where two models part: what the tokens of a run's results say, in memory that does not grow with their number."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

#: Edges of the histogram, a quarter of a decade each. What is below the first, zero included, is counted apart.
HISTOGRAM_EDGES: Final = 10.0 ** np.arange(-8.0, 2.01, 0.25)
POSITION_EDGES: Final = np.linspace(0.0, 1.0, 21)
ENTROPY_EDGES: Final = np.array([0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, np.inf])
_LARGEST: Final = 25
_RANKS: Final = ("unshifted", "marginal", "shifted")


class Binned:
    """Means of a value over bins of a key, with standard errors that take each result as one cluster.

    The mean in a bin is a ratio of sums over results; its error by linearisation (Cochran, "Sampling Techniques",
    3rd ed., section 6.4), from sums alone.
    """

    def __init__(self, edges: Column) -> None:
        self.edges = edges
        bins = len(edges) - 1
        self._clusters = np.zeros(bins)
        self._moments = np.zeros((5, bins))  # of sums s and counts n: s, n, s², s·n, n²

    def add(self, keys: Column, values: Column) -> None:
        """The tokens of one result. Values that are not finite are left out."""
        fine = np.isfinite(values) & np.isfinite(keys)
        bins = len(self.edges) - 1
        at = np.clip(np.searchsorted(self.edges, keys[fine], side="right") - 1, 0, bins - 1)
        n = np.bincount(at, minlength=bins).astype(np.float64)
        s = np.bincount(at, values[fine], minlength=bins)
        self._clusters += n > 0
        self._moments += np.stack([s, n, s * s, s * n, n * n])

    def rows(self) -> list[tuple[float, float, int, float, float | None]]:
        """(low, high, tokens, mean, standard error or None) of every bin that has tokens."""
        found = []
        for i, (s, n, ss, sn, nn) in enumerate(self._moments.T):
            if n:
                mean, k = s / n, self._clusters[i]
                residual = max(0.0, ss - 2 * mean * sn + mean * mean * nn)
                error = math.sqrt(k / (k - 1) * residual) / n if k > 1 else None
                found.append((float(self.edges[i]), float(self.edges[i + 1]), int(n), float(mean), error))
        return found


@dataclass(slots=True)
class Token:
    """What one token of the vocabulary had of the whole."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0


@dataclass(slots=True)
class Atlas:
    """Accumulates results of `switch` or `divergence`; `measure` is the one all figures are of."""

    measure: str
    results: int = 0
    tokens: int = 0
    infinite: int = 0
    below: int = 0
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64))
    by_position: Binned = field(default_factory=lambda: Binned(POSITION_EDGES))
    by_entropy: Binned = field(default_factory=lambda: Binned(ENTROPY_EDGES))
    ranks: Counter[str] = field(default_factory=Counter)
    runs: dict[str, Counter[int]] = field(default_factory=lambda: {"a": Counter(), "b": Counter()})
    vocabulary: dict[str, Token] = field(default_factory=dict)
    noise_floor: float | None = None
    _largest: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """One result. Nothing is taken of one that has not the measure."""
        columns = columns_of(record)
        if self.measure not in columns:
            return
        values = _array(columns[self.measure])
        if not values.size:
            return
        self.results += 1
        self.tokens += values.size
        self.infinite += int(np.isinf(values).sum())
        finite = values[np.isfinite(values)]
        self.below += int((finite < HISTOGRAM_EDGES[0]).sum())
        self.histogram += np.histogram(np.minimum(finite, HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0]
        self.by_position.add(np.arange(values.size) / values.size, values)
        if "entropy_a" in columns:
            self.by_entropy.add(_array(columns["entropy_a"]), values)
        self._rank(record, columns)
        for lead, group in groupby(str(record.get("leads", ""))):
            self.runs[lead][sum(1 for _ in group)] += 1
        self._name(record, values)
        floor = record.get("noise_floor", {}).get("pass_shape", {}).get(self.measure)
        if floor is not None:
            self.noise_floor = max(floor, self.noise_floor or 0.0)

    def largest(self) -> list[dict[str, Any]]:
        """The places where the models were furthest apart, the furthest first."""
        return [place for _, _, place in sorted(self._largest, key=lambda each: (-each[0], -each[1]))]

    def shifts(self) -> dict[str, float]:
        """Shares of tokens at which B's best is A's best, its second or third, or worse (URIAL, section 2)."""
        total = sum(self.ranks.values())
        return {name: self.ranks[name] / total for name in _RANKS} if total else {}

    def _rank(self, record: Mapping[str, Any], columns: Mapping[str, Sequence[float | None]]) -> None:
        if "rank_of_b_in_a" in columns:
            ranks = _array(columns["rank_of_b_in_a"])
            counts = (ranks <= 1).sum(), ((ranks > 1) & (ranks <= 3)).sum(), (ranks > 3).sum()
            self.ranks.update(dict(zip(_RANKS, map(int, counts), strict=True)))
        elif shifts := (record.get("summary") or {}).get("shifts"):
            positions = record["summary"]["positions"]
            self.ranks.update({name: round(positions * shifts[name]["value"]) for name in _RANKS})

    def _name(self, record: Mapping[str, Any], values: Column) -> None:
        texts = record.get("tokens") or []
        if len(texts) != values.size:
            return
        for text, value in zip(texts, values.tolist(), strict=True):
            if math.isfinite(value):
                token = self.vocabulary.setdefault(text, Token())
                token.count += 1
                token.total += value
                token.largest = max(token.largest, value)
        for at in np.argsort(-values, kind="stable")[:_LARGEST].tolist():
            value = float(values[at])
            if len(self._largest) == _LARGEST and value <= self._largest[0][0]:
                break
            place = {"id": str(record["id"]), "sample": int(record.get("sample", 0)), "position": at}
            place |= {"token": texts[at], "before": "".join(texts[max(0, at - 8) : at]), "value": value}
            entry = (value, -(self.tokens + at), place)  # of equals the first in the file
            push = heapq.heappush if len(self._largest) < _LARGEST else heapq.heappushpop
            push(self._largest, entry)


def columns_of(record: Mapping[str, Any]) -> dict[str, Sequence[float | None]]:
    """Every measure a result has a value of at each token, by name."""
    found = dict(record.get("values") or {}) | dict(record.get("signals") or {})
    if record.get("divergences"):
        found[str(record.get("measure", "js"))] = record["divergences"]
    return found


def _array(values: Sequence[float | None]) -> Column:
    return np.array([math.inf if value is None else value for value in values], dtype=np.float64)
