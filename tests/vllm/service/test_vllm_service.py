"""The service in its environment, vLLM in its own: engines and workers end, streams do as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from rl_onoff import AsyncClient
from rl_onoff.schemas import SwitchResponse
from tests.e2e.running_service import RunningService, alive, running
from tests.e2e.test_service_resume import same, switch

ROOT = Path(__file__).parents[3]
POLICY = {"kind": "divergence", "on": 0.1}
PROMPT = "Q: 17 + 25 - 9"

#: A worker that counts its engines' passes while there is a file `fault`, and at the twelfth kills the process named in
#: it or, if none is, fails: streams of 150 tokens are under way then, however slowly the test hears of them.
FAULTY = """
import os, runpy, signal
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
passes = 0
def disturbed(execute):
    def execute_model(self, *args, **kwargs):
        global passes
        passes = passes + 1 if os.path.exists("{fault}") else 0
        if passes == 12:
            with open("{fault}") as file:
                victim = file.read()
            os.unlink("{fault}")
            if not victim:
                raise RuntimeError("simulated")
            os.kill(int(victim), signal.SIGKILL)
        return execute(self, *args, **kwargs)
    return execute_model
for kind in (UniProcExecutor, MultiprocExecutor):
    kind.execute_model = disturbed(kind.execute_model)
if __name__ == "__main__":  # ranks of their own import this file
    runpy.run_module("workers", run_name="__main__")
"""


#: Engine options by what they try. With ranks of its own vLLM wants a NUMA node each, or to be told not to bind.
PAIRS: dict[str, dict[str, Any]] = {
    "two": {"engines": "two"},
    "one": {"engines": "one"},
    "parallel": {"engine_b": {"tensor_parallel_size": 2}},
}


def settings(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    (folder / "faulty.py").write_text(FAULTY.format(fault=folder / "fault"))
    python = folder / "python"
    python.write_text(
        f"#!/bin/sh\n{' '.join(f'{k}={v}' for k, v in environment.items())} "
        f"exec {os.environ['RL_ONOFF_VLLM_PYTHON']} {folder / 'faulty.py'}\n"
    )
    python.chmod(0o700)
    models = {
        "a": {"name": "base", "path": str(ROOT / "demo/base")},
        "b": {"name": "rl", "path": str(ROOT / "demo/rl")},
    }
    pair = {"name": "demo", "backend": "vllm", "python": str(python), "options": options, **models}
    return {"pairs": [pair], "resume_seconds": 300, "stop_seconds": 1}


def ranks_of(worker: int) -> list[int]:
    """vLLM's own processes under a worker: none, where its engines run in the worker itself."""
    threads = Path(f"/proc/{worker}/task").glob("*/children")
    children = [pid for thread in threads for pid in thread.read_text().split()]
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM")]


def prepare(fault: Path, victim: int | None) -> None:
    fault.write_text("" if victim is None else str(victim))


async def disturbed(client: AsyncClient, fault: Path, victim: int | None) -> list[SwitchResponse]:
    """Eight streams, amid which the process `victim` is killed or, without one, a pass of an engine fails."""
    prepare(fault, victim)
    return await asyncio.gather(*(switch(client, PROMPT, POLICY, 150, i, ignore_eos=True)() for i in range(8)))


async def worker_of(service: RunningService) -> int:
    """Its worker, once there is one: what was left of the streams may have been under way when the last one died."""
    async with asyncio.timeout(300):
        while len(service.workers) != 1:
            await asyncio.sleep(0.05)
    return service.workers[0]


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", PAIRS)
async def test_streams_outlive_an_engine_and_a_worker(tmp_path: Path, name: str) -> None:
    with running(tmp_path, settings(tmp_path, PAIRS[name])) as service:
        service.wait_for(lambda: "serving on http" in service.log.read_text() or service.process.poll(), 300)
        async with AsyncClient(service.url, timeout=300, max_retries=0) as client:  # what is lost is seen
            wanted = [await switch(client, PROMPT, POLICY, 150, i, ignore_eos=True)() for i in range(8)]
            assert any("b" in result.leads for result in wanted)

            first = await worker_of(service)
            ranks = ranks_of(first)
            assert len(ranks) == (2 if name == "parallel" else 0)
            after_engine = await disturbed(client, tmp_path / "fault", ranks[-1] if ranks else None)
            for pid in (first, *ranks):
                await gone(pid)
            assert "the worker of pair demo ended with code 4" in service.log.read_text()

            second = await worker_of(service)
            ranks = ranks_of(second)
            after_worker = await disturbed(client, tmp_path / "fault", second)
            for got in (after_engine, after_worker):
                for want, have in zip(wanted, got, strict=True):
                    same(want, have)
            third = await worker_of(service)
            for pid in (second, *ranks):
                await gone(pid)
            ranks = ranks_of(third)
        service.process.kill()
        for pid in (third, *ranks):
            await gone(pid)
