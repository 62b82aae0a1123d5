"""L1 to L6 of docs/reliability.md, in full. Alone on the machine, or the figures are its neighbours'."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.e2e.running_service import RunningService, running, table_pair
from tests.e2e.test_service_resume import demo_pair
from tests.soak.figures import percentile, report
from tests.soak.load import at_rate, session, slope, stream

MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
STEP = 0.05  # seconds a table's forward pass takes: 20 tokens a second where each is one

pytestmark = pytest.mark.slow

SWITCHED = {"prompt": "b", "lookahead": 0}
PLAIN = {"prompt": "b", "model": "base"}


def paced(folder: Path, delay: float = STEP) -> dict[str, Any]:
    pair = table_pair(folder, endless=True, delay=delay, max_len=200_000)
    return {"pairs": [{**pair, "sequences": 512}], "stop_seconds": 1}


@pytest.mark.parametrize(("path", "body"), [("generate", PLAIN), ("switch-generate", SWITCHED)])
@pytest.mark.parametrize("streams", [128, 256])
async def test_l1_many_streams(tmp_path: Path, path: str, body: dict[str, Any], streams: int) -> None:
    tokens = 200
    with running(tmp_path, paced(tmp_path)) as service:
        url = f"{service.url}/{path}"
        async with session() as http:
            await stream(http, url, {**body, "sampling": {"max_tokens": 2}})  # the first request of all takes longer
            bodies = [{**body, "sampling": {"max_tokens": tokens, "seed": seed}} for seed in range(streams)]
            before = service.seconds_used
            found = await asyncio.gather(*(stream(http, url, each) for each in bodies))
            used = service.seconds_used - before
    first = [each.first for each in found]
    gaps = [gap for each in found for gap in each.gaps]
    report(
        f"L1 {path} {streams}x{tokens}",
        whole=sum(each.whole(tokens) for each in found),
        first_p50=percentile(first, 50),
        first_p99=percentile(first, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        gap_max=max(gaps),
        cpu_ms_per_token=1000 * used / (streams * tokens),
        load_average=os.getloadavg()[0],
    )
    assert all(each.whole(tokens) for each in found)
    if streams == 128:
        assert percentile(first, 99) <= 1
        assert percentile(gaps, 99) <= 0.25


async def test_l3_cached_divergences(tmp_path: Path) -> None:
    items = [{"prompt": f"Q: {n}-8=", "solution": f"\n1 so guess {n - 8}\nA: {n - 8}"} for n in range(20, 52)]
    with running(tmp_path, {"pairs": [demo_pair()]}) as service:
        url = f"{service.url}/divergence"
        async with session() as http:

            async def ask(index: int) -> None:
                body = {"items": [items[index % len(items)]], "measures": ["js"]}
                async with http.post(url, json=body) as response:
                    answer = await response.read()
                    if response.status != 200:
                        raise RuntimeError(answer.decode())

            for index in range(len(items)):
                await ask(index)
            before = service.seconds_used
            latencies, failures = await at_rate(300, 60, ask)
            used = service.seconds_used - before
    report(
        "L3 300/s for 60 s",
        failures=len(failures),
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        longest=max(latencies),
        cpu_ms_per_request=1000 * used / len(latencies),
        load_average=os.getloadavg()[0],
    )
    assert not failures
    assert percentile(latencies, 99) <= 0.15


@dataclass(frozen=True)
class Soaked:
    """What a service was before and after a soak: its descriptors and tasks, and its memory meanwhile, in MiB."""

    finished: int
    left: int
    before: tuple[int, int]
    after: tuple[int, int]
    in_hand: float
    minutes: list[float]
    sizes: list[float]


async def soaked(folder: Path, seconds: float, clients: int = 32) -> Soaked:
    """Clients that stream, ask and leave, one request in twenty in the middle; then half a minute's rest at most."""
    with running(folder, {**paced(folder, 0.005), "reconnect_seconds": min(30, seconds)}) as service:
        url = service.url
        async with session() as http:
            await one_of_many(http, url, random.Random(0))
        before = (service.descriptors, service.tasks)
        counts = [0, 0]
        async with session() as http:
            end = time.monotonic() + seconds

            async def client(seed: int) -> None:
                rng = random.Random(seed)
                while time.monotonic() < end:
                    counts[await one_of_many(http, url, rng)] += 1

            everyone = asyncio.gather(*(client(seed) for seed in range(clients)))
            times, sizes = await resident(service, everyone)
            await everyone
        settle = time.monotonic() + 30
        while time.monotonic() < settle:
            after = (service.descriptors, service.tasks)
            async with session() as http, http.get(f"{url}/metrics") as response:
                in_hand = active(await response.text())
            if after[0] <= before[0] + clients and after[1] <= before[1] and not in_hand:
                break
            await asyncio.sleep(0.5)
    mebibytes = [size / 2**20 for size in sizes]
    return Soaked(counts[0], counts[1], before, after, in_hand, [each / 60 for each in times], mebibytes)


async def test_l5_a_long_time_of_it(tmp_path: Path) -> None:
    found = await soaked(tmp_path, MINUTES * 60)
    late = [i for i, minute in enumerate(found.minutes) if minute >= min(5, MINUTES / 2)]
    growth = slope([found.minutes[i] for i in late], [found.sizes[i] for i in late])
    report(
        f"L5 {MINUTES:g} min",
        finished=found.finished,
        left=found.left,
        mib_per_minute=growth,
        mib=[round(found.sizes[i]) for i in (0, late[0], -1)],
        descriptors=[found.before[0], found.after[0]],
        tasks=[found.before[1], found.after[1]],
        in_hand=found.in_hand,
    )
    assert found.after[0] <= found.before[0] + 32  # connections to the worker, kept for the next requests
    assert found.after[1] <= found.before[1]
    assert found.in_hand == 0
    if MINUTES >= 10:
        assert growth <= 1


async def one_of_many(http: aiohttp.ClientSession, url: str, rng: random.Random) -> bool:
    """One request; whether it was left in the middle."""
    sampling = {"max_tokens": rng.randrange(20, 200), "seed": rng.randrange(10**6)}
    leaves = rng.random() < 0.05
    if rng.random() < 0.2:
        items = [{"prompt": "b", "solution": "ab" * rng.randrange(5, 60)}]
        async with http.post(f"{url}/divergence", json={"items": items, "measures": ["js"]}) as response:
            if leaves:
                response.close()
                return True
            assert response.status == 200, await response.text()
            await response.read()
            return False
    found = await stream(
        http, f"{url}/switch-generate", {"prompt": "b", "sampling": sampling}, abort_after=10 if leaves else 0
    )
    if not leaves:
        assert found.whole(sampling["max_tokens"]), found.ends
    return leaves


async def resident(service: RunningService, until: asyncio.Future[Any]) -> tuple[list[float], list[int]]:
    """The service's memory once a second until that is done."""
    times: list[float] = []
    sizes: list[int] = []
    begin = time.monotonic()
    while not until.done():
        times.append(time.monotonic() - begin)
        sizes.append(service.resident)
        await asyncio.sleep(1)
    return times, sizes


def active(page: str) -> float:
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("rl_onoff_worker_active{"))


async def test_l6_a_slow_reader(tmp_path: Path) -> None:
    """Who reads 1 KB a second of a stream that comes much faster: cut once one write has waited for 30 s, and no one
    else waits for him."""
    pair = table_pair(tmp_path, "fast", endless=True, max_len=200_000)
    document = {**paced(tmp_path), "send_seconds": 30}
    document["pairs"] = [*document["pairs"], pair]
    with running(tmp_path, document) as service:
        url = httpx.URL(service.url)
        async with session() as http:
            body = {**SWITCHED, "a": "base", "sampling": {"max_tokens": 400, "seed": 1}}
            alone = await asyncio.gather(*(stream(http, f"{url}/switch-generate", body) for _ in range(8)))
            before = service.resident
            with slow_reader(url):
                begun = time.monotonic()
                beside = await asyncio.gather(*(stream(http, f"{url}/switch-generate", body) for _ in range(8)))
                cut = asyncio.create_task(until_cut(service))
                _, sizes = await resident(service, cut)
                cut_after, grown = await cut - begun, max(sizes) - before
    gaps = [[gap for each in found for gap in each.gaps] for found in (alone, beside)]
    report(
        "L6 1 KB/s",
        cut_after=cut_after,
        grown_mib=grown / 2**20,
        gap_p99_alone=percentile(gaps[0], 99),
        gap_p99_beside=percentile(gaps[1], 99),
        load_average=os.getloadavg()[0],
    )
    assert all(each.whole(400) for each in [*alone, *beside])
    assert 29 <= cut_after <= 45
    assert grown <= 32 << 20
    assert percentile(gaps[1], 99) <= max(0.25, 3 * percentile(gaps[0], 99))


async def until_cut(service: RunningService) -> float:
    """When the service said that it has given a client up."""
    deadline = time.monotonic() + 180
    while "the client read nothing" not in service.log.read_text():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return time.monotonic()


@contextmanager
def slow_reader(url: httpx.URL) -> Iterator[None]:
    """A client of a fast stream that reads 1 KB a second."""
    content = b'{"prompt": "b", "a": "fast-base", "sampling": {"max_tokens": 150000, "seed": 1}, "stream": true}'
    head = (
        f"POST /switch-generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    done = threading.Event()

    def read(client: socket.socket) -> None:
        while not done.wait(0.25):
            client.recv(256)

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((url.host, url.port))
        client.sendall(head.encode() + b"\r\n\r\n" + content)
        reading = threading.Thread(target=read, args=(client,))
        reading.start()
        try:
            yield
        finally:
            done.set()
            reading.join()
