"""Lateness of a store, in sum: once for all who wait at a time, never where it is this process that is late."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.services.cache.patience import STEP, Patience


async def wait(patience: Patience, seconds: float) -> None:
    async with patience.waiting():
        await asyncio.sleep(seconds)


async def test_what_is_answered_soon_costs_nothing() -> None:
    patience = Patience(0.25)
    for _ in range(20):
        await wait(patience, STEP / 5)
    assert patience.left == 0.2


async def test_slow_answers_add_up_and_those_who_wait_together_count_once() -> None:
    patience = Patience(0.25)

    async def rounds(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(wait(patience, 0.06) for _ in range(8)))

    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        await rounds(20)
    # All that was borne, and the first steps of each round; far from what 20 rounds take.
    assert 0.2 <= time.monotonic() - begin < 1
    with pytest.raises(TimeoutError):
        await wait(patience, 0.06)
    patience.renew()
    await wait(patience, 0.03)


async def test_a_loop_that_is_late_itself_charges_nobody() -> None:
    patience = Patience(0.25)
    for _ in range(5):
        task = asyncio.create_task(wait(patience, 0.001))
        await asyncio.sleep(0)
        time.sleep(0.08)  # noqa: ASYNC251
        await task
    assert patience.left > 0.15


async def test_bytes_are_worth_their_time() -> None:
    patience = Patience(0.25)
    for _ in range(12):
        await wait(patience, 0.03)
        patience.came(4 << 20)
    assert patience.left > 0.1


async def test_when_one_fails_all_end() -> None:
    patience = Patience(10)
    tasks = [asyncio.create_task(wait(patience, 60)) for _ in range(4)]
    await asyncio.sleep(0.01)
    patience.end()
    assert all(isinstance(result, TimeoutError) for result in await asyncio.gather(*tasks, return_exceptions=True))
