"""Workers die at random moments under many open requests: every one ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient
from rl_onoff.schemas import DivergenceResponse, SwitchResponse, SwitchToken
from tests.e2e.running_service import RunningService, running, table_pair

POLICIES: list[dict[str, Any]] = [
    {"kind": "divergence", "on": 0.1},
    {"kind": "divergence", "on": 0.02, "off": 0.01, "min_dwell": 4, "max_b_fraction": 0.5},
    {"kind": "random", "rate": 0.3},
    {"kind": "always_b"},
]


def demo_pair() -> dict[str, Any]:
    """The shipped pair."""
    folder = Path(__file__).parents[2] / "demo"
    a, b = ({"name": name, "path": str(folder / name), "device": "cpu"} for name in ("base", "rl"))
    return {"name": "demo", "backend": "hf", "a": a, "b": b, "options": {"threads": 1}}


async def killed_at_random(service: RunningService, url: str, kills: int, stop: asyncio.Event) -> int:
    """Kill the worker whenever it has been ready for a random moment; how often."""
    rng, done = random.Random(7), 0
    async with httpx.AsyncClient(base_url=url) as http:
        while not stop.is_set() and done < kills:
            if (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                for worker in service.workers:
                    os.kill(worker, signal.SIGKILL)
                done += 1
            await asyncio.sleep(0.05)
    return done


def settings(pair: dict[str, Any], kills: int) -> dict[str, Any]:
    return {"pairs": [pair], "most_deaths": kills + 2, "resume_seconds": 120, "stop_seconds": 1}


async def disturbed(service: RunningService, url: str, kills: int, requests: list[Any]) -> list[Any]:
    stop = asyncio.Event()
    killer = asyncio.create_task(killed_at_random(service, url, kills, stop))
    results = await asyncio.gather(*(request() for request in requests))
    stop.set()
    assert await killer >= min(kills, 1)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kills", [int(os.environ.get("KILLS", "3"))])
async def test_streams_of_a_table_pair(tmp_path: Path, kills: int) -> None:
    pair = table_pair(tmp_path, endless=True, delay=0.01, max_len=100_000)
    with running(tmp_path, settings(pair, kills)) as service:
        url = service.url
        async with AsyncClient(url, timeout=300, max_retries=0) as client:

            def switched(index: int) -> Any:
                return switch(client, "b", POLICIES[index % len(POLICIES)], 150, index)

            wanted = await asyncio.gather(*(switched(i)() for i in range(20)))
            got = await disturbed(service, url, kills, [switched(i) for i in range(20)])
    for want, have in zip(wanted, got, strict=True):
        same(want, have)


@pytest.mark.slow
async def test_every_kind_of_request_on_the_demo_pair(tmp_path: Path) -> None:
    prompt = "Q: 17 + 25 - 9"
    with running(tmp_path, settings(demo_pair(), 2)) as service:
        url = service.url
        async with AsyncClient(url, timeout=300, max_retries=0) as client:

            async def divergence() -> DivergenceResponse:
                items = [{"prompt": prompt, "solution": "1 so work 17+25=42\n" * 20}] * 4
                return await client.divergence(items=items, a="base", b="rl", measures=["js", "kl_ab"])

            requests = [switch(client, prompt, POLICIES[i % 4], 200, i, ignore_eos=True) for i in range(8)]
            wanted = await asyncio.gather(*(request() for request in requests), divergence())
            got = await disturbed(service, url, 2, [*requests, divergence])
    for want, have in zip(wanted[:-1], got[:-1], strict=True):
        same(want, have)
    values, again = ([item.values["js"] for item in answer.items] for answer in (wanted[-1], got[-1]))
    assert [len(column) for column in again] == [len(column) for column in values]
    assert again == [pytest.approx(column, abs=1e-6) for column in values]


def switch(client: AsyncClient, prompt: str, policy: dict[str, Any], tokens: int, seed: int, **more: Any) -> Any:
    async def run() -> SwitchResponse:
        sampling = {"max_tokens": tokens, "seed": seed, **more}
        stream = await client.switch_generate(prompt=prompt, policy=policy, sampling=sampling, stream=True)
        async with stream as events:
            indices = [event.index async for event in events if isinstance(event, SwitchToken)]
            result = events.result
        assert indices == list(range(len(result.token_ids)))
        return result

    return run


def same(want: SwitchResponse, have: SwitchResponse) -> None:
    for field in ("text", "token_ids", "leads", "finish_reason"):
        assert getattr(have, field) == getattr(want, field), field
    assert [s.position for s in have.switches] == [s.position for s in want.switches]
    assert have.divergences == pytest.approx(want.divergences, abs=1e-4)
