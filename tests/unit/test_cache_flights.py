"""Equal jobs at the same time: one is computed, all have its rows, and nobody holds more of them than a window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.config import Settings
from app.services.cache import flights, frames
from app.services.cache.counters import CacheCounters
from app.services.cache.frames import Cache, CachedFrames
from rl_onoff.errors import InternalError
from workers.wire import Array, Done, Frame, ModelInfo, PairInfo, Rows, Score, Usage

V = 100
CHUNK = 10
CHUNK_BYTES = CHUNK * (4 * V + 4 + 8)
#: Of a gate through which nothing here goes: it stands before what these tests replace.
TICKET: Any = None
JOB = Score("a", list(range(1, 92)), 1)  # 90 positions: nine chunks, six blocks, the last of them short


class Pair:
    """As much of a loaded pair as is looked at."""

    class config:  # noqa: N801
        name = "p"
        options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        model = ModelInfo("m", "path", None, "f", "float32", "cpu", V, V, 512, [0], None, 1)
        self.info = PairInfo("p", "hf", "1", model, model, "{}", {})


class Model:
    """Stands for workers: what it was asked for, and how many of its answers are being read."""

    def __init__(self, fails_after: int | None = None, short: int = 0) -> None:
        self.starts: list[int] = []
        self.rows = 0
        self.active = 0
        self._fails_after = fails_after
        self._short = short

    async def run(self, pair: Any, job: Score) -> AsyncGenerator[Frame, None]:
        self.starts.append(job.start - 1)
        self.active += 1
        try:
            for begin in range(job.start, len(job.ids) - self._short, CHUNK):
                await asyncio.sleep(0)
                ids = job.ids[begin : begin + CHUNK]
                if self._fails_after is not None and self.rows >= self._fails_after:
                    raise InternalError("NaN")
                self.rows += len(ids)
                yield rows_of(ids, begin - job.start, job.top_k or V)
            yield Done(Usage())
        finally:
            self.active -= 1


def rows_of(ids: list[int], start: int, columns: int) -> Rows:
    values = -np.tile(np.arange(columns, dtype=np.float32), (len(ids), 1)) - np.float32(ids)[:, None]
    places = np.tile(np.arange(columns, dtype=np.int64), (len(ids), 1))
    ids_of, tail = (None, None) if columns == V else (Array.of(places), Array.of(np.zeros(len(ids))))
    return Rows(start, Array.of(values), ids_of, Array.of(values[:, 0]), Array.of(np.ones(len(ids))), tail)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model()
    monkeypatch.setattr(frames.replay, "run", lambda pair, job, ticket: model.run(pair, job))
    monkeypatch.setattr(flights, "WINDOW_BYTES", 2 * CHUNK_BYTES)
    return model


def cache(cache_bytes: int = 1 << 20) -> Cache:
    return Cache(Settings(cache_bytes=cache_bytes), CacheCounters(CollectorRegistry()))


async def values(reader: CachedFrames, job: Score = JOB, pause: float = 0) -> list[float]:
    """The first column, in the order it came."""
    found: list[float] = []
    async with aclosing(reader.run(Pair(), job, TICKET)) as answer:  # type: ignore[arg-type]
        async for frame in answer:
            if isinstance(frame, Rows):
                assert frame.start == len(found)
                found += frame.values.numpy()[:, 0].tolist()
                await asyncio.sleep(pause)
    return found


WANT = [-float(token) for token in JOB.ids[1:]]


@pytest.mark.parametrize("top_k", [None, 7])
async def test_of_equal_requests_one_is_computed_and_the_others_have_its_rows(model: Model, top_k: int | None) -> None:
    job = msgspec.structs.replace(JOB, top_k=top_k)
    one = cache()
    readers = [one.open(None) for _ in range(6)]
    assert await asyncio.gather(*(values(reader, job) for reader in readers)) == [WANT] * 6
    assert model.starts == [0]
    assert model.active == 0
    assert [reader.use.computed_rows for reader in readers] == [90, 0, 0, 0, 0, 0]
    assert [reader.use.hit_rows for reader in readers] == [0, 90, 90, 90, 90, 90]


async def test_who_comes_late_joins_even_without_a_store_that_holds_anything(model: Model) -> None:
    one = cache(cache_bytes=1)  # every block is larger
    first = aiter(one.open(None).run(Pair(), JOB, TICKET))  # type: ignore[arg-type]
    await anext(first)
    late = asyncio.create_task(values(one.open(None)))
    assert await late == WANT
    assert model.starts == [0]
    await first.aclose()  # type: ignore[attr-defined]
    assert model.active == 0


async def test_a_smaller_k_is_read_of_a_larger_ones_flight_and_not_the_other_way(model: Model) -> None:
    one = cache()
    large, small = (msgspec.structs.replace(JOB, top_k=k) for k in (8, 5))
    first, second, third = (one.open(None) for _ in range(3))
    await asyncio.gather(values(first, large), values(second, small))
    assert model.starts == [0]
    await asyncio.gather(values(third, msgspec.structs.replace(JOB, top_k=9)), values(second, large))
    assert model.starts == [0, 0]


async def test_who_began_a_flight_may_leave_it_to_the_others(model: Model) -> None:
    one = cache()
    first = aiter(one.open(None).run(Pair(), JOB, TICKET))  # type: ignore[arg-type]
    await anext(first)
    other = asyncio.create_task(values(one.open(None)))
    await asyncio.sleep(0.001)
    await first.aclose()  # type: ignore[attr-defined]
    assert await other == WANT
    assert model.starts == [0]


async def test_with_its_last_reader_a_job_ends(model: Model) -> None:
    one = cache()
    tasks = [asyncio.create_task(values(one.open(None), pause=60)) for _ in range(3)]
    while not model.rows:
        await asyncio.sleep(0.001)
    assert model.active == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert model.active == 0
    assert not one.flights._under_way


async def test_a_reader_that_is_slow_neither_waits_others_out_nor_makes_them_hold_its_rows(model: Model) -> None:
    one = cache(cache_bytes=1)  # nothing is found again: the worst case
    slow = aiter(one.open(None).run(Pair(), JOB, TICKET))  # type: ignore[arg-type]
    await anext(slow)
    flight = next(iter(one.flights._under_way.values()))
    quick = aiter(one.open(None).run(Pair(), JOB, TICKET))  # type: ignore[arg-type]
    sizes = [flight.size async for _ in quick]
    assert model.starts == [0]
    assert max(sizes) <= 3 * CHUNK_BYTES  # the window and the newest
    rest = [frame async for frame in slow if isinstance(frame, Rows)]
    assert [frame.start for frame in rest] == list(range(10, 90, 10))
    assert model.starts == [0, 10]  # what it had not had, for itself
    assert model.active == 0


async def test_who_fell_behind_finds_the_rest_in_the_store(model: Model) -> None:
    one = cache()
    slow = aiter(one.open(None).run(Pair(), JOB, TICKET))  # type: ignore[arg-type]
    await anext(slow)
    assert await values(one.open(None)) == WANT
    rest = [frame async for frame in slow if isinstance(frame, Rows)]
    assert np.concatenate([frame.values.numpy()[:, 0] for frame in rest]).tolist() == WANT[10:]
    assert model.starts == [0]


@pytest.mark.parametrize("short", [0, CHUNK])
async def test_a_failure_is_its_starters_and_the_others_try_for_themselves(
    monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """It may have been of that one's worker alone; an answer with too few rows is a failure too."""
    failing = Model(fails_after=None if short else 30, short=short)
    working = Model()
    runs = iter([failing, working])
    monkeypatch.setattr(frames.replay, "run", lambda pair, job, ticket: next(runs).run(pair, job))
    one = cache()
    results = await asyncio.gather(*(values(one.open(None)) for _ in range(3)), return_exceptions=True)
    assert isinstance(results[0], InternalError)
    assert results[1:] == [WANT, WANT]
    assert failing.active == working.active == 0
    assert len(working.starts) == 1


async def test_lists_of_known_whole_rows_are_not_computed_and_the_rest_of_them_is(model: Model) -> None:
    one = cache()
    begun = msgspec.structs.replace(JOB, ids=JOB.ids[:28])  # 27 positions: a block and most of another
    assert await values(one.open(None), begun) == WANT[:27]
    lists = msgspec.structs.replace(JOB, top_k=7)
    reader = one.open(None)
    assert await values(reader, lists) == WANT
    assert reader.use.hit_rows == 16
    assert model.starts == [0, 16]
    assert await values(one.open(None), msgspec.structs.replace(lists, ids=JOB.ids[:28])) == WANT[:27]
    assert model.starts == [0, 16]
