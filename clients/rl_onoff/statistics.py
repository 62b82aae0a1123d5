"""What a comparison of two models over many items says: tables of a paper, with errors that allow for clustering.

Tokens of one solution are not independent. Beside the standard error over tokens, means over several items carry one
clustered by item (a mean over tokens is a ratio of sums over items; its error by linearisation: Cochran, "Sampling
Techniques", 3rd ed., section 6.4). Infinite values are counted, not averaged, as in `rl_onoff.summary`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rl_onoff import summary

Column = npt.NDArray[np.float64]

#: Edges of the buckets of A's confidence, the probability of its most likely token.
CONFIDENCE_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
POSITION_BUCKETS = 10


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
    """A mean with its standard error over tokens, and by item where there are two at least."""

    value: float
    stderr: float
    clustered_stderr: float | None


@dataclass(frozen=True, slots=True)
class Place:
    """A token of the comparison."""

    item: int
    position: int


@dataclass(frozen=True, slots=True)
class MeasureSummary:
    """`at` is where the largest value is, the first of equals."""

    statistics: summary.Statistics
    clustered_stderr: float | None
    at: Place


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

    `rms_delta_p` is the root mean square of p_B - p_A of the scored token, as llama.cpp's `perplexity` reports it;
    `shifts` the shares of tokens at which B's best is A's best, its second or third, or worse (URIAL, section 2).
    """

    positions: int
    items: int
    measures: dict[str, MeasureSummary]
    top1_agreement: Estimate
    perplexity: summary.PerplexityRatio
    ratio_clustered_stderr: float | None
    rms_delta_p: Estimate
    mean_delta_p: Estimate
    shifts: dict[str, Estimate]
    by_confidence: list[Bucket]
    by_position: list[Bucket]


def summarise(items: Sequence[ItemColumns]) -> Summary:
    """Of at least one item with at least one token each; no NaN."""
    parts = [item.top1_agree for item in items]
    ids = np.repeat(np.arange(len(items)), [part.size for part in parts])
    logprobs_a, logprobs_b = (_join(items, name) for name in ("logprobs_a", "logprobs_b"))
    columns = {name: np.concatenate([item.measures[name] for item in items]) for name in items[0].measures}
    ratio = summary.perplexities(logprobs_a, logprobs_b)
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isinf(logprobs_a) & np.isinf(logprobs_b), 0.0, logprobs_a - logprobs_b)
    spread = clustered_stderr(gap, ids) if np.isfinite(gap).all() else None
    delta_p = np.exp(logprobs_b) - np.exp(logprobs_a)
    rank = _join(items, "rank")
    where = np.concatenate([np.arange(part.size) / part.size for part in parts])
    return Summary(
        positions=ids.size,
        items=len(items),
        measures={name: _measure(column, ids) for name, column in columns.items()},
        top1_agreement=estimate(_join(items, "top1_agree"), ids),
        perplexity=ratio,
        ratio_clustered_stderr=None if spread is None else ratio.ratio * spread,
        rms_delta_p=_root(estimate(delta_p**2, ids)),
        mean_delta_p=estimate(delta_p, ids),
        shifts={
            name: estimate(chosen.astype(np.float64), ids)
            for name, chosen in (
                ("unshifted", rank == 1),
                ("marginal", (rank > 1) & (rank <= 3)),
                ("shifted", rank > 3),
            )
        },
        by_confidence=buckets(_join(items, "top_prob_a"), CONFIDENCE_EDGES, columns),
        by_position=buckets(where, [i / POSITION_BUCKETS for i in range(POSITION_BUCKETS + 1)], columns),
    )


def clustered_stderr(values: Column, clusters: npt.NDArray[np.int64]) -> float | None:
    """Standard error of the mean of finite values whose errors are shared within a cluster; None for one cluster."""
    finite = np.isfinite(values)
    values, clusters = values[finite], clusters[finite]
    names, places = np.unique(clusters, return_inverse=True)
    if names.size < 2:
        return None
    residuals = np.bincount(places, values - values.mean())
    return math.sqrt(names.size / (names.size - 1) * float((residuals**2).sum())) / values.size


def estimate(values: Column, clusters: npt.NDArray[np.int64]) -> Estimate:
    """The mean of finite values with both its errors."""
    stderr = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else 0.0
    return Estimate(float(values.mean()), stderr, clustered_stderr(values, clusters))


def buckets(keys: Column, edges: Sequence[float], columns: Mapping[str, Column]) -> list[Bucket]:
    """Means of the finite values of each column over the tokens whose key lies between neighbouring edges."""
    found = np.clip(np.searchsorted(edges, keys, side="right") - 1, 0, len(edges) - 2)
    made = []
    for index, (low, high) in enumerate(pairwise(edges)):
        chosen = found == index
        means = {name: _finite_mean(column[chosen]) for name, column in columns.items()}
        made.append(Bucket(float(low), float(high), int(chosen.sum()), means))
    return made


def _finite_mean(values: Column) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else math.nan


def _measure(column: Column, ids: npt.NDArray[np.int64]) -> MeasureSummary:
    index = int(column.argmax())
    item = int(ids[index])
    place = Place(item, index - int(np.searchsorted(ids, item)))
    return MeasureSummary(summary.statistics(column), clustered_stderr(column, ids), place)


def _root(square: Estimate) -> Estimate:
    """The root of a mean, its errors by the delta method."""
    root = math.sqrt(square.value)
    factor = 0.5 / root if root else 0.0
    clustered = None if square.clustered_stderr is None else square.clustered_stderr * factor
    return Estimate(root, square.stderr * factor, clustered)


def _join(items: Sequence[ItemColumns], name: str) -> Column:
    return np.concatenate([getattr(item, name) for item in items])
