"""What the unit tests share."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no counterexample.
settings.register_profile("rl-onoff", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rl-onoff")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes waiting instant; what was waited for is in the list."""
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(asyncio, "sleep", wait)
    return waited
