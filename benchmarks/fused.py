"""What a comparison of two whole models costs under a wide vocabulary: fused, materialised, and by streams of rows.

All through a loaded pair, as the worker runs them, taking turns; best of the rounds. `materialised` is the fused code
with one chunk for all positions of a pass. JSON lines.

    python -m benchmarks.fused [--hidden 896] [--length 512] [--dtype float32] [--only fused]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory import extra_mb_async
from benchmarks.wide import spec, write_pair
from workers import fused, scoring
from workers.backends import load_pair
from workers.host import answer
from workers.memory import keep_freed_memory
from workers.wire import Compare, Values

MEASURES = ["js", "kl_ab", "kl_ba", "tv", "entropy_a", "entropy_b", "delta_logp"]


async def drained(frames: Any) -> float:
    """The mean JS of a job's answer."""
    parts = [frame.measures["js"].numpy() async for frame in frames if isinstance(frame, Values)]
    return float(np.concatenate(parts).mean())


@contextmanager
def whole_chunks(length: int) -> Any:
    """One chunk, one pass: the logits of all positions exist at once."""
    before = fused.CHUNK_BYTES, scoring.MAX_POSITIONS
    fused.CHUNK_BYTES, scoring.MAX_POSITIONS = 1 << 62, length
    try:
        yield
    finally:
        fused.CHUNK_BYTES, scoring.MAX_POSITIONS = before


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    dtype = getattr(torch, options.dtype)
    write_pair(folder, vocab_size=options.vocab, hidden=options.hidden, context=options.length + 16, dtype=dtype)
    pair = load_pair(spec(folder, float32_head=options.dtype == "float32", threads=options.threads))
    generator = np.random.default_rng(0)

    def job() -> Compare:  # other tokens each time, so that no cache helps
        ids = generator.integers(0, options.vocab, options.length + 8).tolist()
        return Compare(ids, 8, ids, 8, MEASURES)

    async def materialised() -> float:
        with whole_chunks(options.length):
            return await drained(answer(pair, job()))

    methods: dict[str, Callable[[], Awaitable[float]]] = {
        "fused": lambda: drained(answer(pair, job())),
        "materialised": materialised,
        "row_streams": lambda: drained(scoring.compare(pair, job())),
    }
    if options.only:
        methods = {options.only: methods[options.only]}
    warm = await drained(answer(pair, job()))  # the cache of keys and values grows, the kernel compiles
    extra = {name: round(await extra_mb_async(method)) for name, method in methods.items()}
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(options.rounds):
        for name, method in methods.items():
            begin = time.perf_counter()
            await method()
            best[name] = min(best[name], time.perf_counter() - begin)
    await pair.close()
    first = next(iter(methods))
    return {
        "hidden": options.hidden,
        "length": options.length,
        "vocab_size": options.vocab,
        "dtype": options.dtype,
        "mean_js": float(f"{warm:.3g}"),
        "seconds": {name: round(seconds, 2) for name, seconds in best.items()},
        f"times_{first}": {name: round(seconds / best[first], 2) for name, seconds in best.items()},
        "extra_mb": extra,
    }


def main() -> None:
    keep_freed_memory()  # as a worker does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["fused", "materialised", "row_streams"])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(run(parser.parse_args(), Path(folder)))))


if __name__ == "__main__":
    main()
