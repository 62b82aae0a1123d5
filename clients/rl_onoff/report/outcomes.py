"""What switching changed: which problems turned right or wrong, against A alone and B alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl_onoff.metrics import find
from rl_onoff.metrics.registry import MODEL_METRICS

Key = tuple[str, int]


def binary_metric(names: Iterable[str]) -> str | None:
    """The first of these that is right or wrong."""
    return next((name for name in names if name not in MODEL_METRICS and find(name).binary), None)


def outcomes(records: Iterable[Mapping[str, Any]], metric: str) -> dict[Key, bool]:
    """Right or wrong, by problem and sample."""
    return {
        (str(record["id"]), int(record.get("sample", 0))): record["metrics"][metric] == 1.0
        for record in records
        if record.get("metrics", {}).get(metric) is not None
    }


@dataclass(frozen=True, slots=True)
class Flips:
    """Samples that all of A alone, B alone and the switched run have, by who was right.

    `counts` by (A right, B right, switched right); `rescued`: A wrong, switched right; `broken`: A right, switched
    wrong.
    """

    counts: Counter[tuple[bool, bool, bool]] = field(default_factory=Counter)
    rescued: list[Key] = field(default_factory=list)
    broken: list[Key] = field(default_factory=list)


def flips(a: Mapping[Key, bool], b: Mapping[Key, bool], switched: Mapping[Key, bool]) -> Flips:
    """Compare by problem and sample: equal samples have equal noise."""
    found = Flips()
    for key in sorted(a.keys() & b.keys() & switched.keys()):
        found.counts[a[key], b[key], switched[key]] += 1
        if a[key] != switched[key]:
            (found.rescued if switched[key] else found.broken).append(key)
    return found
