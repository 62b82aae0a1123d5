"""Whether OpenMP's threads should spin or sleep while they wait, as a user of the service feels it.

    python -m benchmarks.waiting > docs/waiting.jsonl

Four services of the same pair, two whose threads sleep and two whose threads spin a little (`workers.launch.local`).
Requests go to one of them, and to two of a kind at once; the kinds take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.pairs import VOCAB_SIZE, build

KINDS = {"sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}, "spinning": {}}
ROUNDS, TOKENS, PROMPT_TOKENS = 7, 64, 32
FIRST_PORT = 8311


def serve(folder: Path, port: int, kind: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "rl_onoff.cli", "serve", "--a", str(folder / "a"), "--b", str(folder / "b")]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, "--port", str(port)], env={**environment, **KINDS[kind]}, stdout=quiet, stderr=quiet
    )


async def until_ready(client: httpx.AsyncClient, url: str) -> None:
    for _ in range(600):
        try:
            if (await client.get(f"{url}/ready")).status_code == 200:
                return
        except httpx.ConnectError:
            pass
        await asyncio.sleep(0.2)
    raise TimeoutError(f"{url} did not become ready")


async def stream(client: httpx.AsyncClient, url: str, seed: int) -> None:
    body: dict[str, Any] = {
        "prompt": " ".join(f"t{(seed * 977 + i * 131) % VOCAB_SIZE}" for i in range(PROMPT_TOKENS)),
        "sampling": {"max_tokens": TOKENS, "seed": seed, "temperature": 1.0, "ignore_eos": True},
        "policy": {"kind": "divergence", "on": 0.2},
        "stream": True,
    }
    async with client.stream("POST", f"{url}/switch-generate", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_lines():
            pass


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, layers=12, hidden=768, ratio=1, triggers=0.02, dtype=torch.bfloat16)
        urls: dict[str, list[str]] = {kind: [] for kind in KINDS}
        services = []
        try:
            for i, kind in enumerate([*KINDS, *KINDS]):
                services.append(serve(folder, FIRST_PORT + i, kind))
                urls[kind].append(f"http://127.0.0.1:{FIRST_PORT + i}")
            async with httpx.AsyncClient(timeout=600) as client:
                await asyncio.gather(*(until_ready(client, url) for some in urls.values() for url in some))
                for at_once, requests in ((1, 1), (1, 8), (2, 1)):
                    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
                    for round_ in range(ROUNDS + 1):
                        for kind, some in urls.items():
                            begin = time.perf_counter()
                            await asyncio.gather(
                                *(stream(client, url, seed) for url in some[:at_once] for seed in range(requests))
                            )
                            if round_:  # the first warms up
                                seconds[kind].append(time.perf_counter() - begin)
                    made = at_once * requests * TOKENS
                    ratios = [a / b for a, b in zip(seconds["sleeping"], seconds["spinning"], strict=True)]
                    line = {
                        "services_at_once": at_once,
                        "requests_each": requests,
                        "rounds": ROUNDS,
                        "processors": os.cpu_count(),
                        "tokens_per_s": {kind: round(made / statistics.median(s), 1) for kind, s in seconds.items()},
                        "spinning_over_sleeping": round(statistics.median(ratios), 2),
                    }
                    print(json.dumps(line), flush=True)
        finally:
            for service in services:
                service.terminate()
            for service in services:
                service.wait()


if __name__ == "__main__":
    asyncio.run(main())
