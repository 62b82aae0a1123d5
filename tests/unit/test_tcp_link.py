"""A worker on TCP: it says where, and answers those alone who know its token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from app.services.link import Link
from rl_onoff.errors import ConfigurationError, WorkerLost, WorkerUnavailable
from workers.__main__ import EXIT_LOST
from workers.backends.table import TablePair
from workers.host import serve
from workers.launch.local import LocalWorker
from workers.wire import Done, Frame, Generate, ModelSpec, SamplingParams, Tokens, WorkerSpec

TABLE = {
    "tokens": ["x", "y", "<eos>"],
    "eos": "<eos>",
    "rows": {"": {"x": 0.5, "y": 0.5}},
    "max_len": 100,
    "delay": 0.02,
}


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    (tmp_path / "t.json").write_text(json.dumps(TABLE))
    model = ModelSpec("m", str(tmp_path / "t.json"))
    return WorkerSpec("p", "table", "", model, model, host="127.0.0.1", token="a-token")


async def test_a_started_worker_tells_its_address_and_knows_its_token(spec: WorkerSpec) -> None:
    worker = await LocalWorker.start(spec)
    links: list[Link] = []
    try:
        async with asyncio.timeout(20):
            while worker.address is None:
                await asyncio.sleep(0.02)
        assert worker.address.startswith("127.0.0.1:")
        links = [Link(worker.address, token=token) for token in ("a-token", "", "a-tokem", "ä")]
        known, *strangers = links
        assert (await known.info()).name == "p"
        frames = [frame async for frame in known.run(Generate("a", [0], 3, SamplingParams()))]
        assert [type(frame) for frame in frames] == [Tokens, Tokens, Tokens, Done]
        for stranger in strangers:
            with pytest.raises(WorkerUnavailable, match="401"):
                await stranger.info()
        async with aiohttp.ClientSession(f"http://{worker.address}") as http:
            for method, path in (("GET", "/health"), ("POST", "/run"), ("GET", "/nowhere")):
                async with http.request(method, path, data=b"x" if method == "POST" else None) as response:
                    assert response.status == 401, path
        await worker.stop(5)
        assert await worker.wait() == 0
        assert worker.problem is None
    finally:
        for link in links:
            await link.close()
        worker.kill()
        await worker.wait()


async def test_one_that_is_forgotten_ends(spec: WorkerSpec) -> None:
    """Its service asks twice a second."""
    worker = await LocalWorker.start(msgspec.structs.replace(spec, lease=1.0))
    try:
        async with asyncio.timeout(20):
            while worker.address is None:
                await asyncio.sleep(0.02)
            link = Link(worker.address, token="a-token")
            for _ in range(8):
                await link.health()
                await asyncio.sleep(0.2)
            asked = time.monotonic()
            assert await worker.wait() == EXIT_LOST
        assert 0.5 < time.monotonic() - asked < 5
    finally:
        await link.close()
        worker.kill()
        await worker.wait()


async def test_none_listens_to_a_network_without_a_token(spec: WorkerSpec) -> None:
    with pytest.raises(ConfigurationError, match="needs a token"):
        await serve(TablePair(spec), "", host="127.0.0.1")


async def rest(frames: AsyncGenerator[Frame, None]) -> list[Frame]:
    return [frame async for frame in frames]


async def test_a_link_that_is_closed_breaks_what_runs_on_it(spec: WorkerSpec) -> None:
    """Its worker may live on, unknown to all: a cluster has lost it."""
    worker = await LocalWorker.start(spec)
    try:
        async with asyncio.timeout(20):
            while worker.address is None:
                await asyncio.sleep(0.02)
            link = Link(worker.address, token="a-token")
            frames = link.run(Generate("a", [0], 90, SamplingParams()))
            assert isinstance(await anext(frames), Tokens)
            closing = asyncio.create_task(link.close())
            with pytest.raises(WorkerLost):
                await rest(frames)
            await closing
    finally:
        worker.kill()
        await worker.wait()


async def test_a_link_that_is_closed_breaks_what_waits_for_an_answer() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(silent, "127.0.0.1")
    link = Link(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", token="a-token")
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(rest(link.run(Generate("a", [0], 3, SamplingParams()))))
        cancelled = asyncio.create_task(rest(link.run(Generate("a", [0], 3, SamplingParams()))))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await link.close()
        with pytest.raises(WorkerLost):
            await waiting
        server.close()
        await server.wait_closed()
