"""The link against workers that break their word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from app.services.link import Link
from rl_onoff.errors import InternalError, InvalidField, OnOffError, WorkerLost, WorkerUnavailable
from workers.wire import Done, Failed, Frame, Generate, SamplingParams, Tokens, Usage, encode_frame

JOB = Generate(side="a", ids=[1], max_tokens=2, sampling=SamplingParams())
TOKEN = encode_frame(Tokens([1], Usage()))

Answer = Callable[[web.StreamResponse], Awaitable[None]]


@asynccontextmanager
async def linked(folder: Path, answer: Answer, status: int = 200) -> AsyncIterator[Link]:
    async def run(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await answer(response)
        return response

    app = web.Application()
    app.router.add_post("/run", run)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "socket")).start()
    link = Link(str(folder / "socket"))
    try:
        yield link
    finally:
        await link.close()
        await runner.cleanup()


async def received(link: Link) -> list[Frame]:
    return [frame async for frame in link.run(JOB)]


async def test_frames_come_through_and_connections_are_used_again(tmp_path: Path) -> None:
    peers = set()

    async def answer(response: web.StreamResponse) -> None:
        peers.add(id(response._req.transport if response._req else None))
        await response.write(TOKEN[:3])
        await response.write(TOKEN[3:] + encode_frame(Done(finish_reason="length")))

    async with linked(tmp_path, answer) as link:
        for _ in range(3):
            assert await received(link) == [Tokens([1], Usage()), Done(finish_reason="length")]
    assert len(peers) == 1


async def test_a_failed_frame_is_raised_as_the_error_it_carries(tmp_path: Path) -> None:
    async def answer(response: web.StreamResponse) -> None:
        await response.write(encode_frame(Failed.of(InvalidField("is wrong", field="ids"))))

    async with linked(tmp_path, answer) as link:
        with pytest.raises(InvalidField, match="ids: is wrong"):
            await received(link)


async def vanish(response: web.StreamResponse) -> None:
    await response.write(TOKEN + TOKEN[:5])
    assert response._req is not None
    assert response._req.transport is not None
    response._req.transport.abort()


async def end_early(response: web.StreamResponse) -> None:
    await response.write(TOKEN)


async def babble(response: web.StreamResponse) -> None:
    await response.write(b"\x03\x00\x00\x00xyz")


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (vanish, 200, WorkerLost),
        (end_early, 200, WorkerLost),
        (babble, 200, InternalError),
        (end_early, 500, InternalError),
    ],
)
async def test_broken_answers(tmp_path: Path, answer: Answer, status: int, error: type[OnOffError]) -> None:
    async with linked(tmp_path, answer, status) as link:
        with pytest.raises(error):
            await received(link)


async def test_closing_the_iterator_cancels_the_job(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def answer(response: web.StreamResponse) -> None:
        try:
            while True:
                await response.write(TOKEN)
                await asyncio.sleep(0.01)
        except (asyncio.CancelledError, ConnectionError):
            cancelled.set()
            raise

    async with linked(tmp_path, answer) as link:
        frames = link.run(JOB)
        await anext(frames)
        await frames.aclose()
        await asyncio.wait_for(cancelled.wait(), 1)


async def test_no_worker_is_unavailable(tmp_path: Path) -> None:
    link = Link(str(tmp_path / "nothing"))
    with pytest.raises(WorkerUnavailable):
        await received(link)
    with pytest.raises(WorkerUnavailable):
        await link.info()
    await link.close()
