"""JSON has no infinity: `null` stands for it, in every answer."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rl_onoff.errors import InternalError


def finite(value: float) -> float | None:
    """Raises InternalError for NaN, which no answer means."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        raise InternalError("a result is not a number")
    return None


def finites(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else finite(value) for value in values]
