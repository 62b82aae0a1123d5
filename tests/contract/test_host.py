"""The worker process, over its real socket: every job is answered or failed, and the process ends when it should."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from workers.wire import (
    Done,
    Failed,
    Frame,
    Generate,
    Health,
    ModelSpec,
    PairInfo,
    SamplingParams,
    SwitchGenerate,
    Tokens,
    WorkerSpec,
    encode,
    read_frames,
)

TABLE = {
    "tokens": ["x", "y", "!", "<eos>"],
    "eos": "<eos>",
    "rows": {"": {"x": 0.5, "y": 0.5}, "!": {"x": 1.0}},
    "max_len": 100_000,
    "fail_on": "!",
}


@dataclass
class Worker:
    process: asyncio.subprocess.Process
    socket: Path
    session: aiohttp.ClientSession

    async def run(self, job: Any) -> list[Frame]:
        async with self.session.post("http://worker/run", data=encode(job)) as response:
            assert response.status == 200
            return [frame async for frame in read_frames(response.content)]

    async def health(self) -> Health:
        async with self.session.get("http://worker/health") as response:
            return msgspec.msgpack.decode(await response.read(), type=Health)

    async def idle(self) -> None:
        async with asyncio.timeout(2):
            while (await self.health()).active:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def worker(folder: Path, **table: Any) -> AsyncIterator[Worker]:
    (folder / "t.json").write_text(json.dumps({**TABLE, **table}))
    socket = folder / "s"
    model = ModelSpec("m", str(folder / "t.json"))
    spec = WorkerSpec("pair", "table", str(socket), model, msgspec.structs.replace(model, name="n"))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "workers", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(spec) + b"\n")
    async with asyncio.timeout(20):
        while not socket.exists():
            await asyncio.sleep(0.02)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        yield Worker(process, socket, session)
    if process.returncode is None:
        process.stdin.close()
        async with asyncio.timeout(5):
            await process.wait()


def endless(count: int = 100) -> Generate:
    return Generate("a", [0], count, SamplingParams(seed=1))


async def test_socket_is_private_and_info_is_whole(tmp_path: Path) -> None:
    async with worker(tmp_path) as it:
        assert stat.S_IMODE(it.socket.stat().st_mode) == 0o600
        async with it.session.get("http://worker/info") as response:
            info = msgspec.msgpack.decode(await response.read(), type=PairInfo)
        assert (info.name, info.a.name, info.b.name, info.a.vocab_size) == ("pair", "m", "n", 5)
        assert json.loads(info.tokenizer)["model"]["type"] == "WordLevel"


async def test_a_job_that_raises_fails_alone(tmp_path: Path) -> None:
    async with worker(tmp_path) as it:
        good = it.run(SwitchGenerate([0, 1], 50, SamplingParams(seed=1), {"kind": "always_a"}))
        bad = it.run(Generate("a", [0, 2], 5, SamplingParams()))
        frames, failed = await asyncio.gather(good, bad)
        assert isinstance(frames[-1], Done)
        assert sum(len(frame.ids) for frame in frames[:-1] if isinstance(frame, Tokens)) == 50
        assert isinstance(failed[-1], Failed)
        assert failed[-1].problem["status"] == 500
        assert "told to fail" not in str(failed[-1].problem)  # the reason is for the log
        assert isinstance((await it.run(endless()))[-1], Done)


@pytest.mark.parametrize(
    "job",
    [
        Generate("a", [0, 99], 5, SamplingParams()),
        Generate("a", [-1], 5, SamplingParams()),
        Generate("a", [], 5, SamplingParams()),
    ],
)
async def test_ids_no_model_may_see_are_refused(tmp_path: Path, job: Generate) -> None:
    async with worker(tmp_path) as it:
        (frame,) = await it.run(job)
        assert isinstance(frame, Failed)
        assert frame.error().status == 422


async def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    async with worker(tmp_path) as it:
        for body in (b"", b"\xc1", encode({"type": "generate"}), b"cos\nsystem\n(S'exit 1'\ntR."):
            async with it.session.post("http://worker/run", data=body) as response:
                (frame,) = [frame async for frame in read_frames(response.content)]
            assert isinstance(frame, Failed)
        assert isinstance((await it.run(endless()))[-1], Done)


async def test_closing_the_connection_cancels_the_job(tmp_path: Path) -> None:
    async with worker(tmp_path, delay=0.005) as it:
        for _ in range(5):
            async with it.session.post("http://worker/run", data=encode(endless(50_000))) as response:
                async for frame in read_frames(response.content):
                    assert isinstance(frame, Tokens)
                    break
        await it.idle()
        steps = (await it.health()).steps
        await asyncio.sleep(0.1)
        assert (await it.health()).steps == steps


async def test_health_answers_while_jobs_run(tmp_path: Path) -> None:
    async with worker(tmp_path, delay=0.01) as it:
        jobs = [asyncio.create_task(it.run(endless(60))) for _ in range(4)]
        await asyncio.sleep(0.2)
        first = await it.health()
        assert first.active == 4
        assert first.pid == it.process.pid
        await asyncio.sleep(0.1)
        assert (await it.health()).steps > first.steps
        await asyncio.gather(*jobs)
        assert (await it.health()).active == 0


async def test_the_end_of_the_parent_is_the_end_of_the_worker(tmp_path: Path) -> None:
    async with worker(tmp_path, delay=0.01) as it:
        job = asyncio.create_task(it.run(endless(50_000)))
        await asyncio.sleep(0.1)
        assert it.process.stdin is not None
        it.process.stdin.close()
        async with asyncio.timeout(2):
            await it.process.wait()
            with pytest.raises((aiohttp.ClientError, asyncio.IncompleteReadError)):
                await job


async def test_sigterm_ends_it_and_removes_the_socket(tmp_path: Path) -> None:
    async with worker(tmp_path, delay=0.01) as it:
        job = asyncio.create_task(it.run(endless(50_000)))
        await asyncio.sleep(0.1)
        it.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await it.process.wait() == 0
            with pytest.raises((aiohttp.ClientError, asyncio.IncompleteReadError)):
                await job
        assert not it.socket.exists()


async def test_a_pair_that_cannot_be_loaded_is_one_line_of_json_and_exit_code_3(tmp_path: Path) -> None:
    model = ModelSpec("m", str(tmp_path / "missing.json"))
    spec = msgspec.json.encode(WorkerSpec("pair", "table", str(tmp_path / "s"), model, model))
    for line, detail in ((spec, "missing.json is not a table"), (b"nonsense", "not a worker spec")):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + b"\n")  # left open: its end would be this process's
        out = await process.stdout.read()
        assert await process.wait() == 3
        problem = json.loads(out)
        assert problem["type"] == "urn:rl-onoff:problem:configuration-error"
        assert detail in problem["detail"]
