"""A worker whose engine lives in other processes ends with it, and its unfinished answers break off."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from app.pair_config import PairConfig
from app.services.launch import launch
from rl_onoff.errors import MissingDependency, WorkerLost
from workers.backends import load_pair
from workers.backends.table import TablePair, TableSequence
from workers.host import serve
from workers.wire import Frame, Generate, ModelSpec, SamplingParams, Tokens, WorkerSpec, encode, read_frames

TABLE = {"tokens": ["x", "y", "<eos>"], "eos": "<eos>", "rows": {"": {"x": 0.5, "y": 0.5}}, "max_len": 10_000}


class Elsewhere(TablePair):
    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self.ended = asyncio.Event()

    async def until_lost(self) -> WorkerLost:
        await self.ended.wait()
        return WorkerLost("the engine ended")


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Elsewhere, asyncio.Task[None], aiohttp.ClientSession]]:
    (folder / "t.json").write_text(json.dumps({**TABLE, "delay": 0.005}))
    model = ModelSpec("m", str(folder / "t.json"))
    pair = Elsewhere(WorkerSpec("p", "table", str(folder / "s"), model, model))
    serving = asyncio.create_task(serve(pair, str(folder / "s")))
    while not (folder / "s").exists():
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / "s"))) as session:
        yield pair, serving, session
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def frames_of(session: aiohttp.ClientSession, seen: list[Frame]) -> None:
    job = Generate("a", [0], 5_000, SamplingParams())
    async with session.post("http://worker/run", data=encode(job)) as response:
        async for frame in read_frames(response.content):
            seen += [frame]


async def test_the_worker_ends_with_its_engine(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, serving, session):
        seen: list[Frame] = []
        job = asyncio.create_task(frames_of(session, seen))
        while not seen:
            await asyncio.sleep(0.01)
        pair.ended.set()
        async with asyncio.timeout(5):
            with pytest.raises(WorkerLost, match="the engine ended"):
                await serving
            with pytest.raises((aiohttp.ClientError, asyncio.IncompleteReadError)):
                await job
    assert all(isinstance(frame, Tokens) for frame in seen)


async def test_a_job_that_meets_the_end_first_breaks_off_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Failed` frame would have the service send the rest of the job to a worker that is about to end."""
    rows = TableSequence.rows

    async def failing(sequence: TableSequence, ids: Any, start: int, **more: Any) -> Any:
        if start > 3:
            raise WorkerLost("the engine ended")
        return await rows(sequence, ids, start, **more)

    monkeypatch.setattr(TableSequence, "rows", failing)
    async with served(tmp_path) as (_, _, session):
        seen: list[Frame] = []
        with pytest.raises((aiohttp.ClientError, asyncio.IncompleteReadError)):
            await frames_of(session, seen)
    assert [type(frame) for frame in seen] == [Tokens] * 3


def test_a_pair_names_its_interpreter() -> None:
    sides = {"a": {"path": "a"}, "b": {"path": "b"}}
    plain, other = (PairConfig(name="p", **sides, **more) for more in ({}, {"python": "~/sglang/bin/python"}))  # type: ignore[arg-type]
    commands = [launch(c, 0, Path(), [sys.executable, "-m", "w"], grace=1, patience=0).command for c in (plain, other)]
    assert commands == [[sys.executable, "-m", "w"], [str(Path.home() / "sglang/bin/python"), "-m", "w"]]


def test_an_environment_without_sglang_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.backends.find_spec", lambda name: None)
    model = ModelSpec("m", "m")
    with pytest.raises(MissingDependency, match="name its interpreter as the pair's `python`"):
        load_pair(WorkerSpec("p", "sglang", "", model, model))
