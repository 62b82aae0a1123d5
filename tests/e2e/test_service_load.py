"""Short forms of the load tests; `make soak` runs the long ones, with the figures of docs/reliability.md."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.e2e.running_service import running, table_pair
from tests.soak.load import at_rate, session, stream
from tests.soak.test_load import PLAIN, SWITCHED, paced, resident, slow_reader, soaked, until_cut

pytestmark = pytest.mark.slow


async def test_l1_l3_many_streams_and_cached_rows(tmp_path: Path) -> None:
    """64 streams at 20 tokens a second, and 40 requests a second beside them."""
    with running(tmp_path, paced(tmp_path)) as service:
        url = service.url

        async with session() as http:

            async def ask(index: int) -> None:
                items = [{"prompt": "b", "solution": "ab" * (index % 4 + 1)}]
                async with http.post(f"{url}/divergence", json={"items": items, "measures": ["js"]}) as response:
                    if response.status != 200:
                        raise RuntimeError(await response.text())

            kinds = [("generate", PLAIN), ("switch-generate", SWITCHED)]
            bodies = [
                (path, {**body, "sampling": {"max_tokens": 40, "seed": seed}})
                for seed in range(32)
                for path, body in kinds
            ]
            found, (_, failures) = await asyncio.gather(
                asyncio.gather(*(stream(http, f"{url}/{path}", body) for path, body in bodies)), at_rate(40, 2, ask)
            )
    assert all(each.whole(40) for each in found)
    assert not failures


async def test_l5_nothing_is_left_of_clients_that_come_and_go(tmp_path: Path) -> None:
    found = await soaked(tmp_path, 6, clients=16)
    assert found.finished > 20
    assert found.after[0] <= found.before[0] + 16  # connections to the worker, kept for the next requests
    assert found.after[1] <= found.before[1]
    assert found.in_hand == 0


async def test_l6_a_slow_reader_is_cut_and_costs_nobody_anything(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, "fast", endless=True, max_len=200_000)
    document = {**paced(tmp_path, 0.01), "send_seconds": 1.5}
    document["pairs"] = [*document["pairs"], pair]
    with running(tmp_path, document) as service:
        url = httpx.URL(service.url)
        before = service.resident
        async with session() as http:
            with slow_reader(url):
                body = {**SWITCHED, "a": "base", "sampling": {"max_tokens": 100, "seed": 1}}
                beside = await asyncio.gather(*(stream(http, f"{url}/switch-generate", body) for _ in range(4)))
                _, sizes = await resident(service, asyncio.create_task(until_cut(service)))
        assert max(sizes) - before < 32 << 20
        assert all(each.whole(100) for each in beside)
