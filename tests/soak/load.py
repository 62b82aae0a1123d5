"""A load that does not measure itself: aiohttp, and no more parsing than counting takes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
    )


@dataclass(slots=True)
class Streamed:
    """What one stream showed: seconds to its first token and between tokens, their ids, and how it ended."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    ends: list[bytes] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def whole(self, tokens: int) -> bool:
        return self.ends == [b"done"] and self.ids == [b"%d" % index for index in range(tokens)]


async def stream(http: aiohttp.ClientSession, url: str, body: dict[str, Any], *, abort_after: int = 0) -> Streamed:
    """Read a stream to its end, or leave after so many tokens."""
    found = Streamed()
    last = begun = time.perf_counter()
    event = b""
    async with http.post(url, json={**body, "stream": True}) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"event: "):
                event = line[7:-1]
                if event in (b"done", b"error"):
                    found.ends.append(event)
            elif line.startswith(b"id: ") and event == b"token":
                now = time.perf_counter()
                if found.ids:
                    found.gaps.append(now - last)
                else:
                    found.first = now - begun
                last = now
                found.ids.append(line[4:-1])
                if abort_after and len(found.ids) >= abort_after:
                    response.close()
                    return found
            elif line.startswith(b"data: ") and event == b"done":
                done = json.loads(line[6:])
                found.token_ids = done.get("token_ids", [])
    return found


async def at_rate(
    per_second: float, seconds: float, ask: Callable[[int], Any]
) -> tuple[list[float], list[BaseException]]:
    """Latencies of requests sent on schedule, whether or not earlier ones were answered, each counted from when it was
    to be sent; and what failed."""
    latencies: list[float] = []
    failures: list[BaseException] = []

    async def one(index: int, due: float) -> None:
        try:
            await ask(index)
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            failures.append(error)
        latencies.append(time.perf_counter() - due)

    begin = time.perf_counter()
    tasks = []
    for index in range(int(per_second * seconds)):
        due = begin + index / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(index, due)))
    await asyncio.gather(*tasks)
    return latencies, failures


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line: values per unit of time."""
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    above = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True))
    return above / sum((t - mean_t) ** 2 for t in times)
