"""Fifty deaths under twenty open streams: none is lost, no text is changed (`KILLS` sets how many)."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from rl_onoff import AsyncClient
from rl_onoff.errors import OnOffError
from rl_onoff.schemas import SwitchResponse, SwitchToken
from tests.e2e.running_service import RunningService, running
from tests.e2e.test_service_resume import POLICIES, demo_pair, settings
from tests.soak.figures import report

KILLS = int(os.environ.get("KILLS", "50"))
STREAMS = 20
TOKENS = 220


async def read(client: AsyncClient, index: int) -> SwitchResponse:
    sampling = {"max_tokens": TOKENS, "seed": index, "ignore_eos": True}
    prompt = f"Q: {index + 11}-{index % 7}+{index * 3}="
    stream = await client.switch_generate(prompt, policy=POLICIES[index % 4], stream=True, sampling=sampling)
    async with stream as events:
        tokens = [event async for event in events if isinstance(event, SwitchToken)]
    result = events.result
    assert [token.index for token in tokens] == list(range(TOKENS))
    assert [token.id for token in tokens] == result.token_ids
    assert "".join(token.text for token in tokens) == result.text
    return result


async def killed(service: RunningService, url: str, rng: random.Random) -> None:
    """Kill the worker `KILLS` times, each a random moment after it was ready."""
    async with httpx.AsyncClient(base_url=url) as http:
        for _ in range(KILLS):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            await asyncio.sleep(rng.uniform(0.1, 2.5))
            for worker in service.workers:
                os.kill(worker, signal.SIGKILL)
            while (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_no_stream_is_lost_and_no_text_changed(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    with running(tmp_path, settings(demo_pair(), KILLS)) as service:
        url = service.url
        # Without retries: what is lost is lost.
        async with AsyncClient(url, timeout=600, stream_timeout=600, max_retries=0) as client:
            wanted = await asyncio.gather(*(read(client, index) for index in range(STREAMS)))
            killer = asyncio.create_task(killed(service, url, random.Random(11)))

            async def keeps_reading(index: int) -> None:
                while not killer.done():
                    try:
                        result = await read(client, index)
                    except OnOffError as error:
                        if type(error).__name__ == "WorkerUnavailable":  # not accepted: nothing was promised
                            found["refused"] += 1
                            await asyncio.sleep(0.3)
                            continue
                        found[f"lost: {error}"] += 1
                        continue
                    found["read"] += 1
                    if (result.text, result.token_ids, result.leads) != (
                        wanted[index].text,
                        wanted[index].token_ids,
                        wanted[index].leads,
                    ):
                        found["changed"] += 1
                        found["changed, where a decision lay within the noise"] += bool(result.decisions_within_noise)

            await asyncio.gather(*(keeps_reading(index) for index in range(STREAMS)))
            await killer
            async with httpx.AsyncClient(base_url=url) as http:
                page = (await http.get("/metrics")).text
    resumed = re.search(r'rl_onoff_resumed_total\{pair="demo"\} ([0-9.]+)', page)
    assert resumed is not None
    report("50 kills", kills=KILLS, streams=STREAMS, resumed=float(resumed[1]), **found)
    assert found["changed"] == 0
    assert not [name for name in found if name.startswith("lost")]
    assert found["read"] >= STREAMS
    assert float(resumed[1]) >= KILLS
