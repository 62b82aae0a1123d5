"""What the cache saves, and what it costs: second asks against first ones and against none, and Redis against itself.

    OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.cache          (minutes; --items N, --rounds N)

Service: `/distributions` over HTTP, V = 32k and 151,936, a random Llama of about 100M parameters in float32 on the
processor, solutions of 128 tokens with the 64 best of each row as JSON, or whole rows as safetensors. Within a round
three sets of fresh solutions are asked for: under `Cache-Control: no-store`, for the first time, and that one again;
which comes first alternates. Figures are seconds, medians over rounds; ratios are medians of each round's. The cache is
full when whole rows are measured; with a larger one (--cache-mb 4096) it fills, and the first ask pays for new memory.

Redis: blocks as the service writes them, on a real server over a unix socket: reading them through the store (checks,
inflation, arrays) against redis-py's MGET of the same keys, both asynchronous, and against its plain GETs, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from app.services.cache.counters import CacheCounters
from app.services.cache.keys import POSITIONS, row_positions
from app.services.cache.redis_store import RedisStore
from benchmarks.wide import write_pair
from tests.e2e.redis_server import RedisServer, redis_server
from tests.e2e.running_service import RunningService, running

TOKENS = 128
PROMPT = 8
TOP_K = 64
#: Hidden size that gives one layer and two embeddings of V rows about 100M parameters.
HIDDEN = {32_000: 1536, 151_936: 320}
MB = 1 << 20
#: Holds the whole rows of one ask, at either V, and not many more.
CACHE_MB = 512
SAFETENSORS = {"Accept": "application/vnd.safetensors"}


def service(
    vocab_size: int, items: int, whole_items: int, rounds: int, cache_mb: int = CACHE_MB
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pair(root, vocab_size=vocab_size, hidden=HIDDEN[vocab_size], context=256, dtype=torch.float32)
        sides = {name: {"name": name, "path": str(root / name), "dtype": "float32", "device": "cpu"} for name in "ab"}
        document = {
            "pairs": [{"name": "wide", "backend": "hf", **sides}],
            "limits": {"row_bytes": 4096 * MB, "body_bytes": 64 * MB},
            "cache_bytes": cache_mb * MB,
            "cache_row_bytes": 256 * MB,
        }
        with running(root, document) as started, httpx.Client(base_url=_url(started), timeout=600) as http:
            return [
                _asked(http, vocab_size, items, TOP_K, rounds, cache_mb),
                _asked(http, vocab_size, whole_items, None, rounds, cache_mb),
            ]


def _url(started: RunningService) -> str:
    for _ in range(5):  # a model of this size may take longer to load than a test waits
        with contextlib.suppress(TimeoutError):
            return started.url
    raise TimeoutError("the service did not start")


def _asked(
    http: httpx.Client, vocab_size: int, items: int, top_k: int | None, rounds: int, cache_mb: int
) -> dict[str, Any]:
    draw = random.Random(vocab_size)

    def fresh() -> dict[str, Any]:
        def ids(count: int) -> list[int]:
            return [draw.randrange(vocab_size) for _ in range(count)]

        asked = [{"prompt_ids": ids(PROMPT), "solution_ids": ids(TOKENS)} for _ in range(items)]
        return {"model": "a", "items": asked, "top_k": top_k}

    def seconds(body: dict[str, Any], headers: dict[str, str] | None = None) -> float:
        begin = time.perf_counter()
        accepted = {} if top_k is not None else SAFETENSORS
        headers = {**accepted, **(headers or {})}
        with http.stream("POST", "/distributions", json=body, headers=headers) as response:
            assert response.status_code == 200, response.read()
            for _ in response.iter_raw():  # and dropped: hundreds of MB kept would be the client's new memory
                pass
        return time.perf_counter() - begin

    seconds(fresh(), {"Cache-Control": "no-store"})  # allocations, thread pools
    if top_k is None:
        for _ in range(1 + cache_mb * MB // (items * TOKENS * vocab_size * 4)):
            seconds(fresh())
    found: dict[str, list[float]] = {name: [] for name in ("none", "first", "second")}
    for turn in range(rounds):
        asked = fresh()

        def none() -> None:
            found["none"].append(seconds(fresh(), {"Cache-Control": "no-store"}))

        def first(asked: dict[str, Any] = asked) -> None:
            found["first"].append(seconds(asked))

        for run in (none, first) if turn % 2 else (first, none):
            run()
        found["second"].append(seconds(asked))
    return {
        "what": "service, in process",
        "V": vocab_size,
        "rows": f"top {top_k}" if top_k is not None else "whole",
        "items": items,
        "tokens": TOKENS,
        **{f"{name}_s": round(statistics.median(times), 3) for name, times in found.items()},
        "none_over_second": _ratio(found["none"], found["second"]),
        "first_over_none": _ratio(found["first"], found["none"], 3),
    }


async def store(server: RedisServer, vocab_size: int, whole: bool, rounds: int) -> dict[str, Any]:
    """One look-up of about 4 MB, or of one item's top-k lists."""
    positions = row_positions(vocab_size) if whole else POSITIONS
    columns = vocab_size if whole else TOP_K
    blocks = max(1, 4 * MB // (positions * columns * 4)) if whole else TOKENS // POSITIONS
    rng = np.random.default_rng(0)
    cache = RedisStore(server.url, timeout=10, ttl=60, counters=CacheCounters(CollectorRegistry()))
    raw = Redis(unix_socket_path=str(server.socket), socket_read_size=1 << 18)
    keys = [rng.bytes(32) for _ in range(blocks)]
    for key in keys:
        logits = 4 * rng.standard_normal((positions, columns), dtype=np.float32)
        values = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        entry: dict[str, Any] = {
            "values": values,
            "token_logprobs": values[:, 0].copy(),
            "entropy": values[:, 1].copy(),
        }
        if not whole:
            values[:] = -np.sort(-values)
            entry |= {
                "ids": rng.integers(0, vocab_size, (positions, columns), dtype=np.int32),
                "tail": rng.random(positions),
            }
        cache.put(key, entry, bulky=whole)
    while len(server.stored()) < blocks:  # noqa: ASYNC110 — another process
        await asyncio.sleep(0.01)
    names = [b"rl-onoff:" + key.hex().encode() for key in keys]
    stored = sum(len(value) for value in await raw.mget(names))
    times: dict[str, list[float]] = {name: [] for name in ("store", "mget", "gets")}
    for _ in range(rounds * 20):
        begin = time.perf_counter()
        assert None not in await cache.get(keys, bulky=whole)
        times["store"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        await raw.mget(names)
        times["mget"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for name in names:
            server.client.get(name)
        times["gets"].append(time.perf_counter() - begin)
    server.client.flushall()
    await raw.aclose()
    await cache.close()
    return {
        "what": "redis over a unix socket",
        "V": vocab_size,
        "rows": "whole" if whole else f"top {TOP_K}",
        "blocks": blocks,
        "stored_mb": round(stored / 1e6, 3),
        "raw_mb": round(blocks * positions * columns * (4 if whole else 8) / 1e6, 3),
        **{f"{name}_ms": round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "store_over_mget": _ratio(times["store"], times["mget"]),
        "store_over_gets": _ratio(times["store"], times["gets"]),
    }


def _ratio(above: list[float], below: list[float], digits: int = 2) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), digits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=64, help="solutions of which the best 64 are asked for")
    parser.add_argument("--whole-items", type=int, default=4, help="solutions of which whole rows are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-mb", type=int, default=CACHE_MB)
    parser.add_argument("--only", choices=["service", "redis"])
    given = parser.parse_args()
    say: Callable[[dict[str, Any]], None] = lambda found: print(json.dumps(found), flush=True)  # noqa: E731
    if given.only != "service":
        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
            for vocab_size in HIDDEN:
                for whole in (False, True):
                    say(asyncio.run(store(server, vocab_size, whole, given.rounds)))
    if given.only != "redis":
        for vocab_size in HIDDEN:
            for found in service(vocab_size, given.items, given.whole_items, given.rounds, given.cache_mb):
                say(found)


if __name__ == "__main__":
    main()
