"""What a model's forward pass costs, by how many sequences it serves and how many tokens it computes of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, Protocol


class PassCosts(Protocol):
    def seconds(self, rows: int, tokens: int) -> float | None:
        """Of a pass over `tokens` new tokens of each of `rows` sequences; None while nothing is known."""
        ...


class MeasuredCosts:
    """Costs from passes timed beforehand: `grid[rows, tokens]` seconds, every row count with every token count.

    Linear between the points and beyond them. A larger pass never costs less than a smaller one: where it was seen to,
    that was the clock's noise.
    """

    def __init__(self, grid: Mapping[tuple[int, int], float]) -> None:
        self._rows = sorted({rows for rows, _ in grid})
        self._tokens = sorted({tokens for _, tokens in grid})
        self._curves: list[list[float]] = []
        below = [0.0] * len(self._tokens)
        for rows in self._rows:
            curve: list[float] = []
            for i, tokens in enumerate(self._tokens):
                curve.append(max(grid[rows, tokens], below[i], curve[-1] if curve else 0.0))
            self._curves.append(curve)
            below = curve

    def seconds(self, rows: int, tokens: int) -> float:
        return _between(self._rows, [_between(self._tokens, curve, tokens) for curve in self._curves], rows)


def _between(xs: list[int], ys: list[float], x: int) -> float:
    if len(xs) == 1:
        return ys[0]
    i = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + slope * (x - xs[i - 1])


class FittedCosts:
    """Costs learned from the calls themselves, `base + slope * tokens`, where the backend does not time its passes.

    A line through the calls seen, by least squares in which the weight of a call decays: machines get busy and
    contexts grow. Until calls of different sizes were seen the slope is what memory-bound models show.
    """

    DECAY: Final = 0.98
    SLOPE: Final = 0.03  # of a pass of one token, for each further one
    PRIOR: Final = 20.0  # squared tokens that the assumed slope weighs

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = 0.0  # the means' weight, and the means
        self._square = self._product = 0.0  # decayed sums around the means
        self._slope: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        if self._slope is not None:
            seconds = min(seconds, 4 * self._at(tokens, self._slope))  # a call that the machine interrupted
        kept = self._weight * self.DECAY
        self._weight = kept + 1
        step, rise = tokens - self._tokens, seconds - self._seconds
        self._tokens += step / self._weight
        self._seconds += rise / self._weight
        self._square = self._square * self.DECAY + step * step * kept / self._weight
        self._product = self._product * self.DECAY + step * rise * kept / self._weight
        assumed = self.SLOPE * self._seconds / (1 + self.SLOPE * (self._tokens - 1))
        slope = (self._product + self.PRIOR * assumed) / (self._square + self.PRIOR)
        self._slope = min(max(slope, 0.0), self._seconds / self._tokens)

    def seconds(self, rows: int, tokens: int) -> float | None:
        return None if self._slope is None else self._at(rows * tokens, self._slope)

    def _at(self, tokens: int, slope: float) -> float:
        return max(self._seconds + slope * (tokens - self._tokens), 0.05 * self._seconds)
