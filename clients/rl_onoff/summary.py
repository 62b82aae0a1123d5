"""Summaries of per-token values: what a paper's table needs, with errors.

Infinite values (KL over disjoint supports) are counted, not averaged: moments are over the finite values, order
statistics over all of them. Where every value is infinite the mean is the infinity most of them are. What cannot be
told is NaN: the error of a mean of one value, or of a perplexity that is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rl_onoff.moments import Moments

Array = npt.NDArray[np.float64]

PERCENTILES = (0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
#: Values kept for percentiles; of more, a uniform sample of so many.
KEPT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Statistics:
    """`stderr` is the standard error of the mean over tokens; `std` has n - 1 in its denominator.

    Both are over the finite values, and NaN where fewer than two are. `mean` is NaN of infinities of both signs alike.
    """

    count: int
    infinite: int
    negative_infinite: int  # of these
    mean: float
    stderr: float
    std: float
    min: float
    max: float
    percentiles: dict[str, float]


class Values:
    """Statistics of values that come item by item, in bounded memory. Percentiles: see `percentiles_from`.

    `at` says where the largest value is, the first of equals: in which call of `add`, counted from 0, and where there.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.count = 0
        self.at = (0, 0)
        self._adds = 0
        self._finite = Moments()
        self._infinite = {math.inf: 0, -math.inf: 0}
        self._min, self._max = math.inf, -math.inf
        self._kept: Array = np.empty(min(kept, 1 << 12))
        self._most = kept
        self._random = np.random.default_rng(0)

    def add(self, values: Array) -> None:
        """Those of one item, `[T]`, none of them NaN."""
        if values.size:
            finite = values[np.isfinite(values)]
            self._finite.add(finite[None])
            for infinity in self._infinite if finite.size < values.size else ():
                self._infinite[infinity] += int((values == infinity).sum())
            index = int(values.argmax())
            if values[index] > self._max:
                self._max, self.at = float(values[index]), (self._adds, index)
            self._min = min(self._min, float(values.min()))
            self._keep(values)
            self.count += values.size
        self._adds += 1

    @property
    def percentiles_from(self) -> int:
        """How many values percentiles are of: all, or a uniform sample where there are more than are kept."""
        return min(self.count, self._most)

    @property
    def clustered_stderr(self) -> float | None:
        """Of the mean, items being independent rather than tokens; None where fewer than two have a finite value."""
        found = self._finite.clustered()
        return None if found is None else math.sqrt(found[0, 0])

    def statistics(self) -> Statistics:
        """Of all values so far, one at least. Percentiles interpolate linearly (numpy's default)."""
        n = self._finite.count
        std = math.sqrt(self._finite.variance[0])
        # Interpolating next to an infinity would give NaN: take the nearest rank there instead.
        method = "linear" if n == self.count else "inverted_cdf"
        kept = self._kept[: self.percentiles_from]
        cuts = np.percentile(kept, PERCENTILES, method=method)  # type: ignore[call-overload]
        return Statistics(
            count=self.count,
            infinite=self.count - n,
            negative_infinite=self._infinite[-math.inf],
            mean=float(self._finite.mean[0]) if n else self._infinity(),
            stderr=std / math.sqrt(n) if n else math.nan,
            std=std,
            min=self._min,
            max=self._max,
            percentiles={f"{p:g}": float(cut) for p, cut in zip(PERCENTILES, cuts, strict=True)},
        )

    def _infinity(self) -> float:
        positive, negative = self._infinite.values()
        return math.nan if positive == negative else math.copysign(math.inf, positive - negative)

    def _keep(self, values: Array) -> None:
        """Algorithm R (Vitter 1985)."""
        first = values[: max(0, self._most - self.count)]
        end = min(self.count, self._most) + first.size
        while end > self._kept.size:
            self._kept = np.resize(self._kept, min(self._most, 2 * self._kept.size))
        self._kept[end - first.size : end] = first
        if first.size < values.size:
            more = values[first.size :]
            at = self._random.integers(self.count + first.size + 1 + np.arange(more.size))
            chosen = at < self._most
            self._kept[at[chosen]] = more[chosen]  # of values for one place the last stays


def statistics(values: Sequence[float] | Array) -> Statistics:
    """Statistics of at least one value, none of them NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        raise ValueError("statistics need at least one value and no NaN")
    found = Values(kept=array.size)
    found.add(array)
    return found.statistics()


@dataclass(frozen=True, slots=True)
class PerplexityRatio:
    """Perplexities of both models on the same tokens, B's over A's, B's minus A's, each with its standard errors.

    As llama.cpp's `perplexity --kl-divergence` defines them (tools/perplexity/perplexity.cpp, "Perplexity statistics"):
    a perplexity is exp of a mean over tokens, its error that of the mean times the perplexity (delta method); errors of
    `ratio` = exp(mean(log p_A - log p_B)) and of `difference` allow for the covariance of the two; `correlation` is
    Pearson's, of log p_A and log p_B. Of the errors those named clustered take items as independent rather than tokens.

    NaN, clustered errors None: what cannot be told, such as an error of an infinite value, or the ratio where each
    model excludes a token that the other allows.
    """

    a: float
    b: float
    ratio: float
    difference: float
    a_stderr: float
    b_stderr: float
    ratio_stderr: float
    difference_stderr: float
    a_clustered_stderr: float | None
    b_clustered_stderr: float | None
    ratio_clustered_stderr: float | None
    difference_clustered_stderr: float | None
    correlation: float


class TokenLogprobs:
    """Log-probabilities of scored tokens under both models, item by item; sums alone are kept."""

    def __init__(self) -> None:
        self._moments = Moments(3)  # of log p_A, log p_B, and log p_A - log p_B
        self._infinities: Array = np.zeros(3)

    def add(self, a: Array, b: Array) -> None:
        """Of one item, `[T]` each; -inf where a model excludes the token."""
        with np.errstate(invalid="ignore"):
            rows = np.stack([a, b, np.where(np.isinf(a) & np.isinf(b), 0.0, a - b)])  # 0: excluded by both alike
            infinite = np.isinf(rows)
            self._infinities += np.where(infinite, rows, 0.0).sum(axis=1)  # NaN where of both signs
        self._moments.add(np.where(infinite, 0.0, rows))

    def perplexities(self) -> PerplexityRatio:
        """Of all tokens so far, one at least."""
        with np.errstate(over="ignore", invalid="ignore"):
            means = self._moments.mean + self._infinities
            a, b, ratio = (float(each) for each in np.exp(means * [-1.0, -1.0, 1.0]))
        difference = math.nan if math.isinf(a) and math.isinf(b) else b - a
        a_errors = self._errors(means, a, {0: -a})
        b_errors = self._errors(means, b, {1: -b})
        ratio_errors = self._errors(means, ratio, {2: ratio})
        # By log p_A and the gap, not by log p_A and log p_B: nothing cancels where the models are nearly the same.
        difference_errors = self._errors(means, difference, {0: -difference, 2: b})
        return PerplexityRatio(
            a=a,
            b=b,
            ratio=ratio,
            difference=difference,
            a_stderr=a_errors[0],
            b_stderr=b_errors[0],
            ratio_stderr=ratio_errors[0],
            difference_stderr=difference_errors[0],
            a_clustered_stderr=a_errors[1],
            b_clustered_stderr=b_errors[1],
            ratio_clustered_stderr=ratio_errors[1],
            difference_clustered_stderr=difference_errors[1],
            correlation=self._correlation(means),
        )

    def _errors(self, means: Array, value: float, gradient: dict[int, float]) -> tuple[float, float | None]:
        """Of a value that moves with these means so."""
        columns = [*gradient]
        if not math.isfinite(value) or not np.isfinite(means[columns]).all():
            return math.nan, None
        slopes = np.array([*gradient.values()])
        size = float(np.abs(slopes).max())  # a perplexity that is still a number may have no square

        def error(covariance: Array | None) -> float | None:
            if covariance is None:
                return None
            part = slopes / size
            return size * math.sqrt(max(0.0, float(part @ covariance[np.ix_(columns, columns)] @ part)))

        plain = error(self._moments.covariance())
        return math.nan if plain is None else plain, error(self._moments.clustered())

    def _correlation(self, means: Array) -> float:
        covariance = self._moments.covariance()
        if covariance is None or not np.isfinite(means[:2]).all():
            return math.nan
        spread = np.sqrt(np.diag(covariance)[:2])
        if (spread <= 1e-12 * np.abs(means[:2])).any():  # constant but for rounding
            return math.nan
        return float(np.clip(covariance[0, 1] / spread.prod(), -1.0, 1.0))


def perplexities(logprobs_a: Array, logprobs_b: Array) -> PerplexityRatio:
    """From the log-probabilities of the scored tokens, `[T]` each, T >= 1; -inf where a model excludes a token."""
    found = TokenLogprobs()
    found.add(logprobs_a, logprobs_b)
    return found.perplexities()
