"""A stream of rows takes no more from the worker than it has given away, and the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.services import rowstream
from app.services.gate import Gate, Ticket
from rl_onoff.errors import InternalError
from workers.wire import Array, Done, Frame, Rows, Score

VOCAB = 11


def frame(start: int, count: int) -> Rows:
    zeros = np.zeros(count)
    return Rows(start, Array.of(np.ones((count, VOCAB), np.float16)), None, Array.of(zeros), Array.of(zeros + start))


async def stream(lengths: list[int], lost: int = 0) -> tuple[rowstream.RowStream, list[int]]:
    made: list[int] = []

    async def run(pair: Any, job: Score, ticket: Ticket) -> AsyncGenerator[Frame, None]:
        count = len(job.ids) - job.start - lost
        for start in range(0, count, 3):
            made.append(start)
            yield frame(start, min(3, count - start))
        yield Done()

    gate = Gate(running=1 << 30, queued=0, sequences=1)
    pair = SimpleNamespace(ticket=lambda total: gate.ticket("client", total))
    model: Any = SimpleNamespace(info=SimpleNamespace(vocab_size=VOCAB), pair=pair)
    jobs = [Score("a", list(range(2 + length)), 2, dtype="float16") for length in lengths]
    frames: Any = SimpleNamespace(run=run)
    return await rowstream.begin(model, jobs, frames, {"model": "m"}), made


async def test_parts_are_made_as_they_are_taken() -> None:
    rows, made = await stream([7, 1, 12])
    assert len(made) <= 2
    total = taken = 0
    async for part in rows.parts:
        total += len(part)
        taken += 1
        await asyncio.sleep(0.001)
        assert len(made) <= taken + 1
    assert total == rows.length
    assert len(made) == 3 + 1 + 4


async def test_a_worker_that_gives_too_few_rows_is_an_error() -> None:
    rows, _ = await stream([7], lost=1)
    with pytest.raises(InternalError, match="another number"):
        async for _ in rows.parts:
            pass
