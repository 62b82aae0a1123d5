"""A process of its own whose memory is measured: `python -m tests.contract.peak_memory FOLDER`, one JSON object."""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.fused import drained, whole_chunks
from benchmarks.memory import extra_mb, extra_mb_async
from benchmarks.wide import spec, write_pair
from workers import comparison
from workers.backends import load_pair
from workers.host import answer
from workers.wire import Compare

V = 50_000
T = 2048
MEASURES = ["js", "kl_ab", "kl_ba", "tv", "entropy_a", "entropy_b", "delta_logp", "rank_of_b_in_a"]


async def comparisons(folder: Path) -> dict[str, float]:
    """Of one job: fused, and with all logits of both models at once."""
    write_pair(folder, vocab_size=V, hidden=32, context=T + 16)
    pair = load_pair(spec(folder, threads=2))

    def job(positions: int) -> Compare:
        ids = np.random.default_rng(positions).integers(0, V, positions + 8).tolist()
        return Compare(ids, 8, ids, 8, MEASURES)

    await drained(answer(pair, job(600)))  # the kernel compiles, the cache of keys and values grows
    found = {"fused": await extra_mb_async(lambda: drained(answer(pair, job(T))))}
    with whole_chunks(T):
        found["materialised"] = await extra_mb_async(lambda: drained(answer(pair, job(T))))
    await pair.close()
    return found


def kernel() -> dict[str, float]:
    """Of the sweeps over rows that are there, in two threads."""
    rng = np.random.default_rng(0)
    a, b = (comparison.Rows.of(rng.standard_normal((64, V), dtype=np.float32)) for _ in "ab")

    def run() -> None:
        comparison.compare(a, b, MEASURES, np.zeros(64, np.int64), threads=2)

    run()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be used again, unseen
    found = {"kernel": extra_mb(run)}
    ctypes.CDLL(None).malloc_trim(0)
    return {**found, "copy": extra_mb(lambda: a.values.copy())}


if __name__ == "__main__":
    print(json.dumps(kernel() | asyncio.run(comparisons(Path(sys.argv[1])))))
