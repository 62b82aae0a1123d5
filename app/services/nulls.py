"""JSON has no infinity: `null` stands for it, in every answer."""

from __future__ import annotations

import math
from collections.abc import Iterable


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def finites(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
