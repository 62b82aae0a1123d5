"""A pair in several workers: streams change over at once, the load is shared, one bad worker is not the pair's end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from rl_onoff import AsyncClient, Client
from rl_onoff.schemas import SwitchResponse, SwitchToken
from tests.e2e.running_service import RunningService, alive, running, table_pair

SAMPLING = {"max_tokens": 150}


def states(http: httpx.Client) -> list[str]:
    (pair,) = http.get("/models").json()["pairs"]
    return sorted(pair["replicas"])


def worker_of(service: RunningService, index: int) -> int:
    return sorted(service.workers)[index]


async def switched(client: AsyncClient, seed: int, **sampling: Any) -> tuple[SwitchResponse, float]:
    """The result, and the longest wait for a token."""
    stream = await client.switch_generate(prompt="b", sampling={**SAMPLING, **sampling, "seed": seed}, stream=True)
    longest, last = 0.0, time.monotonic()
    async with stream as events:
        async for event in events:
            if isinstance(event, SwitchToken):
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return events.result, longest


async def test_streams_of_a_dead_worker_go_on_in_the_other(tmp_path: Path) -> None:
    pair = {**table_pair(tmp_path, endless=True, delay=0.01, max_len=100_000), "replicas": 2}
    with running(tmp_path, {"pairs": [pair], "stop_seconds": 1}) as service:
        async with AsyncClient(service.url, timeout=60) as client, httpx.AsyncClient(base_url=service.url) as http:
            wanted = await asyncio.gather(*(switched(client, seed) for seed in range(8)))
            running_now = [asyncio.create_task(switched(client, seed)) for seed in range(8)]
            await asyncio.sleep(0.4)
            page = (await http.get("/metrics")).text
            for replica in "01":  # the service's own count: half of them in each
                assert f'rl_onoff_worker_outstanding{{pair="pair",replica="{replica}"}} 4.0' in page
            os.kill(worker_of(service, 0), signal.SIGKILL)
            await asyncio.sleep(0.1)
            assert (await http.get("/ready")).status_code == 200
            got = await asyncio.gather(*running_now)
            page = (await http.get("/metrics")).text
        for (want, _), (have, _) in zip(wanted, got, strict=True):
            for field in ("text", "token_ids", "leads", "divergences", "finish_reason"):
                assert getattr(have, field) == getattr(want, field), field
        assert 'rl_onoff_resumed_total{pair="pair"} 4.0' in page
        with httpx.Client(base_url=service.url) as again:
            service.wait_for(lambda: states(again) == ["ready", "ready"], 20)
        left = service.workers
        service.terminate()
        assert service.exit_code() == 0
        assert len(left) == 2
        assert not any(alive(worker) for worker in left)


async def test_two_workers_do_nearly_twice_the_work(tmp_path: Path) -> None:
    """A pass waits as for a GPU, one at a time: what the two gain over one is the routing's."""
    seconds = {}
    for replicas in (1, 2):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        pair = {**table_pair(folder, endless=True, delay=0.1, turns=True, max_len=100_000), "replicas": replicas}
        with running(folder, {"pairs": [pair], "stop_seconds": 1}) as service:
            async with AsyncClient(service.url, timeout=60) as client:

                async def generated(count: int, tokens: int) -> None:
                    sampling = {"max_tokens": tokens, "n": count}
                    await client.generate(model="base", prompt="b", sampling=sampling)

                await generated(4, 2)  # the first of a worker takes a second longer
                began = time.monotonic()
                await generated(16, 4)
                seconds[replicas] = time.monotonic() - began
    assert seconds[1] / seconds[2] >= 1.8, seconds


def test_one_that_dies_again_and_again_rests_and_the_last_one_ends_the_service(tmp_path: Path) -> None:
    pair = {**table_pair(tmp_path, endless=True), "replicas": 2}
    with (
        running(tmp_path, {"pairs": [pair], "most_deaths": 2, "stop_seconds": 1}) as service,
        Client(service.url) as client,
        httpx.Client(base_url=service.url) as http,
    ):
        stays, victim = service.workers
        os.kill(victim, signal.SIGKILL)
        service.wait_for(lambda: set(service.workers) - {stays, victim} and states(http) == ["ready", "ready"], 20)
        (victim,) = set(service.workers) - {stays}
        os.kill(victim, signal.SIGKILL)
        service.wait_for(lambda: states(http) == ["failed", "ready"])
        assert "it is not started again for" in service.log.read_text()
        assert http.get("/ready").status_code == 200
        assert len(client.generate(model="base", prompt="b", sampling={"max_tokens": 5}).results[0].token_ids) == 5
        os.kill(stays, signal.SIGKILL)
        service.wait_for(lambda: service.workers not in ([], [stays]) and states(http) == ["failed", "ready"], 20)
        os.kill(service.workers[0], signal.SIGKILL)
        assert service.exit_code(20) == 70
        assert any("of pair pair died 2 times" in line for line in service.said())
