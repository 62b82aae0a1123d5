"""The noise floor of a run: that of its results together, each of which tells of its own item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_onoff.moments import Moments


class Floor:
    """Add results of `divergence --noise-floor`, ask for the summary."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Any]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """One result, with `noise_floor` or without."""
        for kind, measures in (record.get("noise_floor") or {}).items():
            kept = self._kinds.setdefault(kind, {})
            for name, found in measures.items():
                if isinstance(found, Mapping):
                    kept.setdefault(name, _Pooled()).add(found, str(record["id"]))
                else:  # the largest of numbers; of words, why there is none, all are the same
                    kept[name] = max(found, kept.get(name, found))

    def summary(self) -> dict[str, Any]:
        """`noise_floor` as in an answer, but for percentiles, which do not follow from those of the items."""
        if not self._kinds:
            return {}
        kinds = {
            kind: {name: each.summary() if isinstance(each, _Pooled) else each for name, each in kept.items()}
            for kind, kept in self._kinds.items()
        }
        return {"noise_floor": kinds}


class _Pooled:
    """Statistics of all tokens from the statistics of each item."""

    def __init__(self) -> None:
        self._moments = Moments()
        self._count = self._negative = 0
        self._min, self._max = math.inf, -math.inf
        self._max_at: dict[str, Any] | None = None

    def add(self, found: Mapping[str, Any], item: str) -> None:
        finite = found["count"] - found["infinite"]
        if finite:
            scatter = (found["std"] or 0.0) ** 2 * (finite - 1)
            self._moments.add_sums(finite, np.array([found["mean"]]), np.array([[scatter]]))
        self._count += found["count"]
        self._negative += found.get("negative_infinite", 0)
        least, most = (math.inf if found[name] is None else found[name] for name in ("min", "max"))
        if found["min"] is None and finite:  # there are finite values, and an infinite one is less than all
            least = -math.inf
        self._min = min(self._min, least)
        if most > self._max:
            self._max, at = most, found.get("max_at")
            self._max_at = None if at is None else at | {"item": item}

    def summary(self) -> dict[str, Any]:
        moments, plain, clustered = self._moments, self._moments.covariance(), self._moments.clustered()
        return {
            "count": self._count,
            "infinite": self._count - moments.count,
            "negative_infinite": self._negative,
            "mean": float(moments.mean[0]) if moments.count else None,
            "stderr": None if plain is None else math.sqrt(plain[0, 0]),
            "std": None if plain is None else math.sqrt(moments.variance[0]),
            "min": self._min if math.isfinite(self._min) else None,
            "max": self._max if math.isfinite(self._max) else None,
            "clustered_stderr": None if clustered is None else math.sqrt(clustered[0, 0]),
            "max_at": self._max_at,
        }
