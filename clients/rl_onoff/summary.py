"""Summaries of per-token values: what a paper's table needs, with errors.

Infinite values (KL over disjoint supports) are counted, not averaged: moments are over the finite values, order
statistics over all of them. Where every value is infinite the mean is the infinity most of them are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERCENTILES = (0.1, 1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Statistics:
    """`stderr` is the standard error of the mean over tokens; `std` has n - 1 in its denominator."""

    count: int
    infinite: int
    mean: float
    stderr: float
    std: float
    min: float
    max: float
    percentiles: dict[str, float]


def statistics(values: Sequence[float] | npt.NDArray[np.float64]) -> Statistics:
    """Statistics of at least one value, none of them NaN. Percentiles interpolate linearly (numpy's default)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        raise ValueError("statistics need at least one value and no NaN")
    finite = array[np.isfinite(array)]
    n = finite.size
    signs = float(np.sign(array).sum())
    mean = float(finite.mean()) if n else math.copysign(math.inf, signs) if signs else 0.0
    std = float(finite.std(ddof=1)) if n > 1 else 0.0
    # Interpolating next to an infinity would give NaN: take the nearest rank there instead.
    method = "linear" if n == array.size else "inverted_cdf"
    cuts = np.percentile(array, PERCENTILES, method=method)  # type: ignore[call-overload]
    return Statistics(
        count=array.size,
        infinite=array.size - n,
        mean=mean,
        stderr=std / math.sqrt(n) if n else 0.0,
        std=std,
        min=float(array.min()),
        max=float(array.max()),
        percentiles={f"{p:g}": float(cut) for p, cut in zip(PERCENTILES, cuts, strict=True)},
    )


@dataclass(frozen=True, slots=True)
class PerplexityRatio:
    """Perplexities of both models on the same tokens and B's over A's.

    `ratio` = exp(mean(log p_A - log p_B)); its standard error comes from the per-token differences (delta method), so
    the correlation of the two models is accounted for. NaN where each excludes a token that the other allows.
    """

    a: float
    b: float
    ratio: float
    ratio_stderr: float


def perplexities(logprobs_a: npt.NDArray[np.float64], logprobs_b: npt.NDArray[np.float64]) -> PerplexityRatio:
    """From the log-probabilities of the scored tokens, `[T]` each; inf where a model excludes a token."""
    with np.errstate(invalid="ignore", over="ignore"):
        both = np.isinf(logprobs_a) & np.isinf(logprobs_b)  # excluded by both alike
        gap = np.where(both, 0.0, logprobs_a - logprobs_b)
        ratio = float(np.exp(gap.mean()))
        spread = float(gap.std(ddof=1)) if gap.size > 1 and np.isfinite(gap).all() else 0.0
        return PerplexityRatio(
            a=float(np.exp(-logprobs_a.mean())),
            b=float(np.exp(-logprobs_b.mean())),
            ratio=ratio,
            ratio_stderr=ratio * spread / math.sqrt(gap.size) if math.isfinite(ratio) else 0.0,
        )
