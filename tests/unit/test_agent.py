"""The agent's answer goes on while its worker loads: the service must not think it gone."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from workers import agent
from workers.wire import ModelSpec, RemoteSpec, WorkerSpec

TOKEN = "a-token-of-this-test"
TABLE = {"tokens": ["x", "<eos>"], "eos": "<eos>", "rows": {"": {"x": 1.0}}, "max_len": 10}


async def test_it_is_heard_while_a_worker_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "BEAT_SECONDS", 0.05)  # a worker's process alone takes longer
    (tmp_path / "t.json").write_text(json.dumps(TABLE))
    model = ModelSpec("m", str(tmp_path / "t.json"))
    spec = RemoteSpec(WorkerSpec("p", "table", "", model, model, token="the-worker's"), "unused:1")
    async with (
        TestClient(TestServer(agent.Agent(TOKEN, "127.0.0.1").application())) as client,
        client.post(
            "/worker", data=msgspec.json.encode(spec), headers={"Authorization": f"Bearer {TOKEN}"}
        ) as response,
    ):
        assert response.status == 200
        said = []
        async for line in response.content:
            said.append(json.loads(line))
            if "address" in said[-1]:
                break
    assert len(said) >= 2
    assert all(line == {} for line in said[:-1])
