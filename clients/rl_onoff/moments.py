"""Means of per-token quantities and the errors of those means, from sums whose size does not grow with the items.

Errors are over tokens and, since tokens of one item are not independent, clustered by item: a mean over tokens is a
ratio of sums over items, its error by linearisation (Cochran, "Sampling Techniques", 3rd ed., section 6.4). Both keep
their digits, for what is summed deviates from a running mean and is never negative (Chan, Golub and LeVeque 1979,
equation 2.1; with weights West 1979).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Moments:
    """Add items; `mean` `[d]` is that over all their tokens. `count`: tokens; `items`: those with a token at least."""

    def __init__(self, width: int = 1) -> None:
        self.count = self.items = 0
        self.mean: Array = np.zeros(width)
        self._scatter: Array = np.zeros((width, width))
        # Of the items' means with weights n^2, as the sum over items of (sum of deviations)^2 has them.
        self._weight = 0.0
        self._centre: Array = np.zeros(width)
        self._between: Array = np.zeros((width, width))

    def add(self, values: Array) -> None:
        """The tokens of one item, `[d, T]`, finite."""
        if values.shape[1]:
            mean: Array = values.mean(axis=1)
            apart = values - mean[:, None]
            self.add_sums(values.shape[1], mean, apart @ apart.T)

    def add_sums(self, count: int, mean: Array, scatter: Array) -> None:
        """One item by its number of tokens, their mean `[d]`, and the sums of products of deviations, `[d, d]`."""
        apart, total = mean - self.mean, self.count + count
        self._scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        apart, weight = mean - self._centre, self._weight + count**2
        self._between += np.outer(apart, apart) * (self._weight * count**2 / weight)
        self._centre = self._centre + apart * (count**2 / weight)
        self.count, self.items, self._weight = total, self.items + 1, weight

    @property
    def variance(self) -> Array:
        """Of the tokens, with n - 1 in its denominator, `[d]`; NaN of fewer than two."""
        return np.diag(self._scatter) / (self.count - 1) if self.count > 1 else np.full(self.mean.size, np.nan)

    def covariance(self) -> Array | None:
        """Of the means, `[d, d]`, tokens being independent; None for fewer than two."""
        return self._scatter / ((self.count - 1) * self.count) if self.count > 1 else None

    def clustered(self) -> Array | None:
        """Of the means, `[d, d]`, items being independent; None for fewer than two."""
        if self.items < 2:
            return None
        apart = self._centre - self.mean
        squares = self._between + self._weight * np.outer(apart, apart)
        return squares * (self.items / (self.items - 1) / self.count**2)
