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
        self._pass_shape: dict[str, float] = {}
        self._measures: dict[str, _Pooled] = {}
        self._others: dict[str, Any] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """One result, with `noise_floor` or without."""
        floor = dict(record.get("noise_floor") or {})
        for name, value in floor.pop("pass_shape", {}).items():
            self._pass_shape[name] = max(value, self._pass_shape.get(name, 0.0))
        for name, found in floor.pop("bfloat16_logits", {}).items():
            self._measures.setdefault(name, _Pooled()).add(found, record)
        self._others |= floor

    def summary(self) -> dict[str, Any]:
        """`noise_floor` as in an answer, but for percentiles, which do not follow from those of the items."""
        if not self._measures and not self._pass_shape:
            return {}
        measures = {name: pooled.summary() for name, pooled in self._measures.items()}
        return {"noise_floor": {"pass_shape": self._pass_shape, "bfloat16_logits": measures} | self._others}


class _Pooled:
    """Statistics of all tokens from the statistics of each item."""

    def __init__(self) -> None:
        self._moments = Moments()
        self._count = 0
        self._min, self._max = math.inf, -math.inf
        self._max_at: dict[str, Any] | None = None

    def add(self, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        finite = found["count"] - found["infinite"]
        if finite:
            scatter = (found["std"] or 0.0) ** 2 * (finite - 1)
            self._moments.add_sums(finite, np.array([found["mean"]]), np.array([[scatter]]))
        self._count += found["count"]
        # An infinite least value is -inf, unless there is no finite one.
        least, most = (math.inf if found[name] is None else found[name] for name in ("min", "max"))
        self._min = min(self._min, -least if found["min"] is None and finite else least)
        if most > self._max:
            self._max, at = most, found.get("max_at")
            self._max_at = None if at is None else at | {"item": str(record["id"])}

    def summary(self) -> dict[str, Any]:
        moments, plain, clustered = self._moments, self._moments.covariance(), self._moments.clustered()
        return {
            "count": self._count,
            "infinite": self._count - moments.count,
            "mean": float(moments.mean[0]) if moments.count else None,
            "stderr": None if plain is None else math.sqrt(plain[0, 0]),
            "std": None if plain is None else math.sqrt(moments.variance[0]),
            "min": self._min if math.isfinite(self._min) else None,
            "max": self._max if math.isfinite(self._max) else None,
            "clustered_stderr": None if clustered is None else math.sqrt(clustered[0, 0]),
            "max_at": self._max_at,
        }
