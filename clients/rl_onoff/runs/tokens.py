"""Per-token values of a run in bounded memory: exact moments, percentiles of a sample where there are many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rl_onoff.summary import PERCENTILES

#: Values kept for percentiles; of more, a uniform sample of so many.
KEPT: Final = 1 << 20


class TokenValues:
    """Add values `[n]`, None for infinite ones; ask for the summary at the end."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept: npt.NDArray[np.float64] = np.empty(min(kept, 1 << 12))
        self._most = kept
        self._random = np.random.default_rng(0)
        self.count = self.infinite = 0
        self._mean = self._squares = 0.0  # of the finite values; squares of what deviates from the mean
        self._min, self._max = math.inf, -math.inf

    def add(self, values: Iterable[float | None]) -> None:
        """Values of one row."""
        array = np.array([math.inf if value is None else value for value in values], dtype=np.float64)
        finite = array[np.isfinite(array)]
        self._merge(finite)
        self.infinite += array.size - finite.size
        if array.size:
            self._min, self._max = min(self._min, float(array.min())), max(self._max, float(array.max()))
        for value in array:  # algorithm R (Vitter 1985)
            at = self.count if self.count < self._most else int(self._random.integers(self.count + 1))
            self.count += 1
            if at < self._most:
                if at >= len(self._kept):
                    self._kept = np.resize(self._kept, min(self._most, 2 * len(self._kept)))
                self._kept[at] = value

    def _merge(self, finite: npt.NDArray[np.float64]) -> None:
        """Without cancellation: Chan, Golub and LeVeque 1979, equation 2.1."""
        if not finite.size:
            return
        before = self.count - self.infinite
        mean = float(finite.mean())
        apart, n = mean - self._mean, before + finite.size
        self._squares += float(((finite - mean) ** 2).sum()) + apart**2 * before * finite.size / n
        self._mean += apart * finite.size / n

    def summary(self) -> dict[str, Any]:
        """Moments over the finite values, order statistics over all; None where infinite."""
        n = self.count - self.infinite
        mean = self._mean if n else None
        variance = self._squares / (n - 1) if n > 1 else 0.0
        kept = self._kept[: min(self.count, self._most)]
        method = "linear" if np.isfinite(kept).all() else "inverted_cdf"
        cuts = np.percentile(kept, PERCENTILES, method=method) if kept.size else []  # type: ignore[call-overload]
        return {
            "count": self.count,
            "infinite": self.infinite,
            "mean": mean,
            "stderr": math.sqrt(variance / n) if n else None,
            "std": math.sqrt(variance),
            "min": _finite(self._min),
            "max": _finite(self._max),
            "percentiles": {f"{p:g}": _finite(float(cut)) for p, cut in zip(PERCENTILES, cuts, strict=False)},
            "percentiles_from": int(kept.size),
        }


def summarise_divergence(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of results of `divergence`: every measure over all tokens, agreement, perplexities of both models."""
    measures: dict[str, TokenValues] = {}
    results = failed = positions = 0
    agree = log_a = log_b = 0.0
    for record in records:
        if "error" in record:
            failed += 1
            continue
        results += 1
        for name, values in record["values"].items():
            measures.setdefault(name, TokenValues()).add(values)
        found = record["summary"]
        positions += found["positions"]
        agree += found["positions"] * found["top1_agreement"]
        log_a += found["positions"] * _log(found["perplexity"]["a"])
        log_b += found["positions"] * _log(found["perplexity"]["b"])
    summary: dict[str, Any] = {"results": results, "failed": failed, "positions": positions}
    if positions:
        summary["measures"] = {name: values.summary() for name, values in measures.items()}
        summary["top1_agreement"] = agree / positions
        summary["perplexity"] = {"a": _exp(log_a / positions), "b": _exp(log_b / positions)}
    return summary


def _log(perplexity: float | None) -> float:
    return math.inf if perplexity is None else math.log(perplexity)


def _exp(value: float) -> float | None:
    return math.exp(value) if value < 700 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
