"""Corpus values and their intervals, by resampling problems.

Samples of one problem are no independent draws: it is problems that are drawn again, with all their samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from rl_onoff.metrics.registry import Metric

RESAMPLES: Final = 2000
#: Resamples x problems held at once.
_AT_ONCE: Final = 1 << 22

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value over `problems` problems with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
    problems: int


def bootstrap(sums: Array, combine: Callable[[Array], Array], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The value of `combine` over all problems, and its percentile interval.

    `sums` is `[problems, S]`: what adds up over problems; `combine` takes `[..., S]` of such sums to `[...]` values.
    Problems are drawn with replacement, by the same seed for every call: intervals of one study are paired.
    """
    problems = len(sums)
    if problems == 0:
        raise ValueError("there is no problem to estimate from")
    value = float(combine(sums.sum(0)))
    infinite = np.isposinf(sums)
    random = np.random.default_rng(seed)
    chunk = max(1, _AT_ONCE // problems)
    drawn: list[Array] = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        weights = random.multinomial(problems, np.full(problems, 1 / problems), size=count).astype(np.float64)
        totals = weights @ np.where(infinite, 0.0, sums)  # an infinite problem that was not drawn would be 0 x inf
        totals[(weights @ infinite.astype(np.float64)) > 0] = math.inf
        with np.errstate(invalid="ignore"):
            drawn.append(np.asarray(combine(totals)))
    values = np.concatenate(drawn)
    # Between a finite value and an infinite one there is nothing to interpolate.
    method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(values).all() else "inverted_cdf"
    low, high = np.nanpercentile(values, [2.5, 97.5], method=method)
    return Estimate(value, float(low), float(high), problems)


def corpus(metric: Metric, texts: Sequence[Sequence[str]], references: Sequence[str | None]) -> Estimate:
    """A metric over a corpus: `texts[i]` are the samples of problem i, `references[i]` its reference."""
    sums = np.array(
        [
            np.sum([metric.sums(text, reference) for text in samples], axis=0)
            for samples, reference in zip(texts, references, strict=True)
        ],
        dtype=np.float64,
    )
    return bootstrap(sums, rows_of(metric))


def rows_of(metric: Metric) -> Callable[[Array], Array]:
    """`metric.combine` over arrays of sums, `[..., S]`."""

    def combine(sums: Array) -> Array:
        return np.apply_along_axis(lambda row: metric.combine(row.tolist()), -1, sums)

    return combine


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of one value per problem."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap(np.stack([array, np.ones_like(array)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])
