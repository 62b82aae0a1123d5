"""What a comparison of two models over many items says: tables of a paper, with errors that allow for clustering.

Beside the standard error over tokens, means over several items carry one clustered by item (`rl_onoff.moments`).
Infinite values are counted, not averaged, as in `rl_onoff.summary`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rl_onoff import summary
from rl_onoff.moments import Moments

Column = npt.NDArray[np.float64]

#: Edges of the buckets of A's confidence, the probability of its most likely token.
CONFIDENCE_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
#: To how much keys of buckets are known: one that is an edge but for rounding belongs above it.
_TO = 1e-7
POSITION_EDGES = tuple(i / 10 for i in range(11))
SHIFTS = ("unshifted", "marginal", "shifted")


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """What was measured at the T tokens of one item, `[T]` each. `rank` is that of B's most likely token in A."""

    measures: Mapping[str, Column]
    logprobs_a: Column
    logprobs_b: Column
    top1_agree: Column
    top_prob_a: Column
    rank: Column


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error over tokens (NaN of one), and by item (None of one)."""

    value: float
    stderr: float
    clustered_stderr: float | None


@dataclass(frozen=True, slots=True)
class Place:
    """A token of the comparison: which item, counted from 0, and where there."""

    item: int
    position: int


@dataclass(frozen=True, slots=True)
class MeasureSummary:
    """`at` is where the largest value is, the first of equals; `percentiles_from` as in `summary.Values`."""

    statistics: summary.Statistics
    clustered_stderr: float | None
    at: Place
    percentiles_from: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens with `low` <= x < `high` (the last: <= `high`), and the mean of each measure over them; NaN over none."""

    low: float
    high: float
    count: int
    means: dict[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all tokens of some items.

    `delta_p` is p_B - p_A of the scored token, with its root mean square as llama.cpp's `perplexity` reports it;
    `shifts` the shares of tokens at which B's best is A's best, its second or third, or worse (URIAL, section 2).
    """

    positions: int
    items: int
    measures: dict[str, MeasureSummary]
    top1_agreement: Estimate
    perplexity: summary.PerplexityRatio
    delta_p: MeasureSummary
    rms_delta_p: Estimate
    mean_delta_p: Estimate
    shifts: dict[str, Estimate]
    by_confidence: list[Bucket]
    by_position: list[Bucket]


class Comparison:
    """Add items, each with a token at least and all with the same measures; then ask for the summary.

    Memory does not grow with the items: of each measure `kept` values stay for percentiles.
    """

    def __init__(self, kept: int = summary.KEPT) -> None:
        self._most = kept
        self._items = 0
        self._measures: dict[str, summary.Values] = {}
        self._delta_p = summary.Values(kept)
        self._logprobs = summary.TokenLogprobs()
        self._means = Moments(2 + len(SHIFTS))  # top-1 agreement, squares of delta p, shifts
        self._by_confidence, self._by_position = Buckets(CONFIDENCE_EDGES), Buckets(POSITION_EDGES)

    def add(self, item: ItemColumns) -> None:
        """Raises ValueError when its measures are not those of the items before it."""
        if not self._items:
            self._measures = {name: summary.Values(self._most) for name in item.measures}
        elif self._measures.keys() != item.measures.keys():
            raise ValueError(f"items measured by {', '.join(self._measures)} and by {', '.join(item.measures)}")
        for name, column in item.measures.items():
            self._measures[name].add(column)
        delta_p = np.exp(item.logprobs_b) - np.exp(item.logprobs_a)
        self._delta_p.add(delta_p)
        self._logprobs.add(item.logprobs_a, item.logprobs_b)
        shifts = (item.rank <= 1, (item.rank > 1) & (item.rank <= 3), item.rank > 3)
        self._means.add(np.stack([item.top1_agree, delta_p**2, *shifts]))
        self._by_confidence.add(item.top_prob_a, item.measures)
        self._by_position.add(np.arange(delta_p.size) / delta_p.size, item.measures)
        self._items += 1

    def largest(self) -> Iterator[Place]:
        """Where the largest values are so far, of each measure and of `delta_p`."""
        return (Place(*values.at) for values in (*self._measures.values(), self._delta_p))

    def summary(self) -> Summary:
        """Of at least one item."""
        delta_p = _measure(self._delta_p)
        plain, clustered = self._means.covariance(), self._means.clustered()
        top1, square, *shifts = (
            Estimate(
                float(mean),
                math.nan if plain is None else math.sqrt(plain[index, index]),
                None if clustered is None else math.sqrt(clustered[index, index]),
            )
            for index, mean in enumerate(self._means.mean)
        )
        return Summary(
            positions=self._means.count,
            items=self._items,
            measures={name: _measure(values) for name, values in self._measures.items()},
            top1_agreement=top1,
            perplexity=self._logprobs.perplexities(),
            delta_p=delta_p,
            rms_delta_p=_root(square),
            mean_delta_p=Estimate(delta_p.statistics.mean, delta_p.statistics.stderr, delta_p.clustered_stderr),
            shifts=dict(zip(SHIFTS, shifts, strict=True)),
            by_confidence=self._by_confidence.means(),
            by_position=self._by_position.means(),
        )


def summarise(items: Sequence[ItemColumns]) -> Summary:
    """Of at least one item with at least one token each; no NaN. Percentiles are of all tokens."""
    comparison = Comparison(kept=sum(item.logprobs_a.size for item in items))
    for item in items:
        comparison.add(item)
    return comparison.summary()


def clustered_stderr(values: Column, clusters: npt.NDArray[np.int64]) -> float | None:
    """Standard error of the mean of finite values whose errors are shared within a cluster; None for one cluster."""
    finite = np.isfinite(values)
    values, clusters = values[finite], clusters[finite]
    names, places = np.unique(clusters, return_inverse=True)
    if names.size < 2:
        return None
    residuals = np.bincount(places, values - values.mean())
    return math.sqrt(names.size / (names.size - 1) * float((residuals**2).sum())) / values.size


class Buckets:
    """Means of the finite values of each column over the tokens whose key lies between neighbouring edges."""

    def __init__(self, edges: Iterable[float]) -> None:
        self._edges = np.array([*edges])
        self._counts = np.zeros(self._edges.size - 1, dtype=np.int64)
        self._sums: dict[str, Column] = {}  # [2, buckets]: of finite values, and how many they are

    def add(self, keys: Column, columns: Mapping[str, Column]) -> None:
        """The tokens of one item, `[T]` each."""
        size = self._counts.size
        found = np.clip(np.searchsorted(self._edges, keys + _TO, side="right") - 1, 0, size - 1)
        self._counts += np.bincount(found, minlength=size)
        for name, column in columns.items():
            finite = np.isfinite(column)
            at = found[finite]
            sums = self._sums.setdefault(name, np.zeros((2, size)))
            sums += [np.bincount(at, column[finite], minlength=size), np.bincount(at, minlength=size)]

    def means(self) -> list[Bucket]:
        """One for each pair of neighbouring edges."""
        with np.errstate(invalid="ignore"):
            means = {name: (sums[0] / sums[1]).tolist() for name, sums in self._sums.items()}
        counts = self._counts.tolist()
        return [
            Bucket(low, high, counts[index], {name: column[index] for name, column in means.items()})
            for index, (low, high) in enumerate(pairwise(self._edges.tolist()))
        ]


def _measure(values: summary.Values) -> MeasureSummary:
    return MeasureSummary(
        values.statistics(), values.clustered_stderr, Place(*values.at), percentiles_from=values.percentiles_from
    )


def _root(square: Estimate) -> Estimate:
    """The root of a mean, its errors by the delta method."""
    root = math.sqrt(square.value)
    factor = 0.5 / root if root else 0.0
    clustered = None if square.clustered_stderr is None else square.clustered_stderr * factor
    return Estimate(root, square.stderr * factor, clustered)
