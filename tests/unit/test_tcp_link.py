"""A worker on TCP: it says where, and answers those alone who know its token."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from app.services.link import Link
from rl_onoff.errors import ConfigurationError, WorkerUnavailable
from workers.backends.table import TablePair
from workers.host import serve
from workers.launch.local import LocalWorker
from workers.wire import Done, Generate, ModelSpec, SamplingParams, Tokens, WorkerSpec

TABLE = {"tokens": ["x", "y", "<eos>"], "eos": "<eos>", "rows": {"": {"x": 0.5, "y": 0.5}}, "max_len": 100}


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


async def test_none_listens_to_a_network_without_a_token(spec: WorkerSpec) -> None:
    with pytest.raises(ConfigurationError, match="needs a token"):
        await serve(TablePair(spec), "", host="127.0.0.1")
