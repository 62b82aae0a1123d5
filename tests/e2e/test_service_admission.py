"""Overload: what is accepted is answered, the rest is refused at once, and no client shuts another out."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running_service import TOKENS, RunningService, running, table_pair

RUNNING, QUEUED = 3, 5
TOKENS_EACH = 40
#: One prompt token and those to come, by both models; the vocabulary, with the unknown token every table has.
COST = 2 * (1 + TOKENS_EACH) * (len(TOKENS) + 1)
GAUGES = ("running", "running_cost", "queued", "queued_cost")
SWITCHED = {"prompt": "b", "sampling": {"max_tokens": TOKENS_EACH, "seed": 1}}
KEYS = ["one-key-of-twenty-ch", "another-key-of-twent"]


def service(folder: Path, **settings: Any) -> Any:
    pair = table_pair(folder, endless=True, delay=0.01)
    limits = {"running": RUNNING * COST, "queued": QUEUED * COST}
    return running(folder, {"pairs": [pair], "limits": limits, **settings})


@pytest.fixture(scope="module")
def overloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with service(tmp_path_factory.mktemp("overloaded"), api_keys=KEYS) as started:
        yield started


def client(service: RunningService, key: str = KEYS[0], **more: Any) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60, limits=limits, **more)


async def gauges(http: httpx.AsyncClient) -> dict[str, float]:
    lines = (await http.get("/metrics")).text.splitlines()
    prefix = "rl_onoff_admission_"
    return {
        line.split("{")[0].removeprefix(prefix): float(line.split()[-1]) for line in lines if line.startswith(prefix)
    }


@contextmanager
def paused(service: RunningService) -> Iterator[None]:
    """Nothing that has its turn ends: what comes now is all there at the same time, however slow this machine is."""
    (worker,) = service.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


async def full(http: httpx.AsyncClient, refused: float = 0) -> None:
    deadline = time.monotonic() + 20
    while (found := await gauges(http)).get("queued", 0) < QUEUED or found["refused_total"] < refused:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


def all_there_is_room_for(http: httpx.AsyncClient, **more: Any) -> list[asyncio.Task[httpx.Response]]:
    body = {**SWITCHED, **more}
    return [asyncio.create_task(http.post("/switch-generate", json=body)) for _ in range(RUNNING + QUEUED)]


async def calm(http: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 20
    while found := {name: value for name, value in (await gauges(http)).items() if name in GAUGES and value}:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/switch-generate", SWITCHED),
        ("/switch-generate", {**SWITCHED, "stream": True}),
        ("/generate", {"model": "base", "prompt": "b", "sampling": {"max_tokens": 2 * TOKENS_EACH + 1}}),
        ("/v1/completions", {"model": "switch:js>0.1", "prompt": "b", "max_tokens": TOKENS_EACH, "stream": True}),
    ],
)
async def test_what_there_is_room_for_succeeds_and_the_rest_is_refused(
    overloaded: RunningService, path: str, body: dict[str, Any]
) -> None:
    async with client(overloaded) as http:
        refused_before = (await gauges(http)).get("refused_total", 0)
        with paused(overloaded):
            asked = [asyncio.create_task(http.post(path, json=body)) for _ in range(4 * (RUNNING + QUEUED))]
            await full(http, refused=refused_before + 3 * (RUNNING + QUEUED))
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status_code for answer in answers) == {
            200: RUNNING + QUEUED,
            429: 3 * (RUNNING + QUEUED),
        }
        for answer in answers:
            if answer.status_code == 200:
                ends = "[DONE]" if path.startswith("/v1") else "event: done"
                assert ends in answer.text or "stream" not in body
                continue
            assert int(answer.headers["Retry-After"]) >= 1
            if path.startswith("/v1"):
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            else:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.json()["type"] == "urn:rl-onoff:problem:overloaded"
                assert answer.json()["retryable"]
        await calm(http)


async def test_a_refusal_comes_at_once(overloaded: RunningService) -> None:
    async with client(overloaded) as http:
        times = []
        with paused(overloaded):
            working = all_there_is_room_for(http)
            await full(http)
            for _ in range(5):
                begun = time.perf_counter()
                assert (await http.post("/switch-generate", json={**SWITCHED, "stream": True})).status_code == 429
                times.append(time.perf_counter() - begun)
        assert sorted(times)[2] <= 0.1  # the median: others use this machine too
        assert {(await each).status_code for each in working} == {200}
        await calm(http)


async def test_a_full_queue_is_nobody_elses(overloaded: RunningService) -> None:
    async with client(overloaded) as flood, client(overloaded, KEYS[1]) as other:
        ended: list[str] = []

        async def ask(http: httpx.AsyncClient, name: str) -> None:
            assert (await http.post("/switch-generate", json=SWITCHED)).status_code == 200
            ended.append(name)

        with paused(overloaded):
            asked = [asyncio.create_task(ask(flood, "flood")) for _ in range(RUNNING + QUEUED)]
            await full(flood)
            assert (await flood.post("/switch-generate", json=SWITCHED)).status_code == 429
            asked.append(asyncio.create_task(ask(other, "other")))
            await asyncio.sleep(0.3)
        await asyncio.gather(*asked)
        assert ended.index("other") <= 2 * RUNNING
        await calm(flood)


async def test_who_leaves_the_queue_makes_room(overloaded: RunningService) -> None:
    async with client(overloaded) as http:
        with paused(overloaded):
            asked = all_there_is_room_for(http)
            await full(http)
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await calm(http)
        assert (await http.post("/switch-generate", json=SWITCHED)).status_code == 200


async def test_what_is_larger_than_the_budget_runs(overloaded: RunningService) -> None:
    body = {"model": "base", "prompts": ["b"] * 9, "sampling": {"max_tokens": 2 * TOKENS_EACH + 1, "seed": 1}}
    async with client(overloaded) as http:
        answer = await http.post("/generate", json=body)
        assert (answer.status_code, len(answer.json()["results"])) == (200, 9)
        items = [{"prompt_ids": [0], "solution_ids": [n % 3, *[1] * 150]} for n in range(3)]
        assert (await http.post("/divergence", json={"items": items})).status_code == 200
        await calm(http)


async def test_what_the_cache_answers_does_not_wait(overloaded: RunningService) -> None:
    scored = {"items": [{"prompt_ids": [1], "solution_ids": [0, 1, 2]}]}
    async with client(overloaded) as http:
        assert (await http.post("/divergence", json=scored)).status_code == 200
        with paused(overloaded):
            working = all_there_is_room_for(http)
            await full(http)
            cached = await http.post("/divergence", json=scored)
            assert (cached.status_code, cached.json()["cache"]["computed_rows"]) == (200, 0)
            other = {"items": [{"prompt_ids": [1], "solution_ids": [0, 0, 2] * 60}]}
            assert (await http.post("/divergence", json=other)).status_code == 429
        await asyncio.gather(*working)
        await calm(http)


async def test_what_waits_when_the_service_ends_is_told(tmp_path: Path) -> None:
    with service(tmp_path, drain_seconds=0.2) as ending:
        async with client(ending) as http:
            with paused(ending):
                asked = all_there_is_room_for(http, stream=True)
                await full(http)
                ending.terminate()
            for answer in await asyncio.gather(*asked):
                assert answer.status_code == 503 or "event: error" in answer.text
                assert "urn:rl-onoff:problem:shutting-down" in answer.text
        assert ending.exit_code() == 0
