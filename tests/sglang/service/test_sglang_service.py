"""The service in its environment, SGLang in its own: servers and workers die, streams end as if nothing had happened,
and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from rl_onoff import AsyncClient
from rl_onoff.schemas import SwitchResponse, SwitchToken
from tests.e2e.running_service import RunningService, alive, running
from tests.e2e.test_service_resume import same, switch

ROOT = Path(__file__).parents[3]
PAIR: dict[str, Any] = {
    "name": "demo",
    "backend": "sglang",
    "python": os.environ["RL_ONOFF_SGLANG_PYTHON"],
    "a": {"name": "base", "path": str(ROOT / "demo/base"), "device": "cpu"},
    "b": {"name": "rl", "path": str(ROOT / "demo/rl"), "device": "cpu"},
    "options": {"server": {"log_level": "error"}},
}
SETTINGS = {"pairs": [PAIR], "resume_seconds": 300, "stop_seconds": 1}
POLICY = {"kind": "divergence", "on": 0.1}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [p for child in task.read_text().split() for p in family(int(child))]
    return found


def servers(service: RunningService) -> list[int]:
    """The two servers of the one worker; each leads a session of its own."""
    (worker,) = service.workers
    return [pid for pid in family(worker) if os.getsid(pid) == pid and pid != worker]


def left(folder: Path) -> list[Path]:
    return list(folder.glob("rl-onoff-sglang-*"))


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def gone(pids: list[int], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.05)


async def disturbed(client: AsyncClient, victim: Any) -> list[SwitchResponse]:
    """Eight streams, during which `victim` is called once."""
    counts = [0] * 8

    def stream(index: int) -> Any:
        return switch(client, "Q: 17 + 25 - 9", POLICY, 150, index, ignore_eos=True)

    async def counted(index: int) -> SwitchResponse:
        sampling = {"max_tokens": 150, "seed": index, "ignore_eos": True}
        opened = await client.switch_generate("Q: 17 + 25 - 9", policy=POLICY, sampling=sampling, stream=True)
        async with opened as events:
            async for event in events:
                counts[index] += isinstance(event, SwitchToken)
            return events.result

    for _ in range(5):  # a busy machine may hand over all of the streams at once: then they are too late
        counts[:] = [0] * 8
        running_streams = [asyncio.create_task(counted(i)) for i in range(8)]
        async with asyncio.timeout(60):
            while min(counts) < 5:
                await asyncio.sleep(0.005)
        if max(counts) < 140:
            break
        await asyncio.gather(*running_streams)
    assert max(counts) < 140
    victim()
    got = await asyncio.gather(*running_streams)
    for want, have in zip(await asyncio.gather(*(stream(i)() for i in range(8))), got, strict=True):
        same(want, have)
    return got


async def test_streams_outlive_a_server_and_a_worker(tmp_path: Path) -> None:
    with running(tmp_path, SETTINGS) as service:
        service.wait_for(lambda: "serving on http" in service.log.read_text() or service.process.poll(), 300)
        async with (
            AsyncClient(service.url, timeout=300, retry_seconds=300) as client,
            AsyncClient(service.url, timeout=300, max_retries=0) as strict,  # what is lost is seen
        ):
            first = family(service.workers[0])
            assert len(servers(service)) == 2
            victim = servers(service)[1]
            begin = time.monotonic()
            results = await disturbed(strict, lambda: os.kill(victim, signal.SIGKILL))
            assert time.monotonic() - begin < 280
            await gone(first, 10)  # the worker went with its server, and the other server with it
            assert "was killed by signal 9" in service.log.read_text()

            # A process inside the server this time, one that SGLang itself watches.
            second = family(service.workers[0])
            scheduler = next(pid for pid in family(servers(service)[0]) if "scheduler" in title(pid))
            again = await disturbed(strict, lambda: os.kill(scheduler, signal.SIGKILL))
            assert [r.text for r in again] == [r.text for r in results]
            await gone(second, 10)

            # The worker, which cannot clean up: its servers find out by themselves.
            third = family(service.workers[0])
            os.kill(service.workers[0], signal.SIGKILL)
            await gone(third, 10)
            divergence = await client.divergence(
                items=[{"prompt": "Q: 49-8=", "solution": "\n1 so guess 41\nA: 41"}], a="base", b="rl", measures=["js"]
            )
            assert max(value or 0.0 for value in divergence.items[0].values["js"]) > 0.1
            last = family(service.process.pid)
        service.process.kill()
        await gone(last, 10)
    assert left(tmp_path) == []
