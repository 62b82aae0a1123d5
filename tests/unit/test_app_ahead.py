from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from app.services.ahead import ahead


class Source:
    def __init__(self, count: int, fails_at: int = -1) -> None:
        self.count, self.fails_at = count, fails_at
        self.made, self.closed = 0, False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for index in range(self.count):
                await asyncio.sleep(0)
                if index == self.fails_at:
                    raise KeyError(index)
                self.made += 1
                yield index
        finally:
            self.closed = True


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_next_item_is_made_while_one_is_in_use_and_no_other() -> None:
    source = Source(5)
    seen = []
    async for item in ahead(source.items()):
        seen.append(item)
        await settled()
        assert source.made == min(5, len(seen) + 1)
    assert seen == [0, 1, 2, 3, 4]
    assert source.closed


async def test_what_fails_is_raised_after_what_came_before_it() -> None:
    source = Source(5, fails_at=2)
    items = ahead(source.items())
    assert [await anext(items), await anext(items)] == [0, 1]
    with pytest.raises(KeyError):
        await anext(items)
    assert source.closed


@pytest.mark.parametrize("fails_at", [-1, 1])
async def test_closing_closes_the_source(fails_at: int) -> None:
    source = Source(5, fails_at)
    async with aclosing(ahead(source.items())) as items:
        async for _ in items:
            await settled()
            break
    assert source.closed


async def test_a_reader_that_is_cancelled_while_it_waits_closes_the_source() -> None:
    source = Source(1)
    never = asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        async with aclosing(source.items()) as inner:
            async for item in inner:
                await never.wait()
                yield item

    async def read() -> None:
        async with aclosing(ahead(items())) as all_of_it:
            async for _ in all_of_it:
                pass

    reading = asyncio.create_task(read())
    await settled()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed
