"""What it brings that items of about one length share passes: comparisons of several at once, with it and without.

A random-weight pair of 134M parameters; every round gives both the same items, whose lengths lie within one eighth of
each other, all asked for together. Medians over rounds of the ratio within a round. JSON lines.

    GOMP_SPINCOUNT=5000 python -m benchmarks.packing [--items 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fused import MEASURES, drained
from benchmarks.lookahead import apart
from benchmarks.pairs import VOCAB_SIZE, build
from workers.backends import load_pair
from workers.backends.base import Pair
from workers.backends.hf import model as hf_model
from workers.host import answer
from workers.memory import keep_freed_memory
from workers.wire import Compare, ModelSpec, WorkerSpec

LONGEST = (48, 96, 256)


@contextmanager
def unpacked() -> Iterator[None]:
    """Calls of one length exactly share a pass, as they would without filling up."""
    before = hf_model._filled
    hf_model._filled = lambda count: count
    try:
        yield
    finally:
        hf_model._filled = before


async def measure(pair: Pair, longest: int, items: int, rounds: int) -> dict[str, Any]:
    """One line of the report."""
    generator = np.random.default_rng(longest)
    lengths = [longest - longest * i // (8 * items) for i in range(items)]
    taken: dict[str, list[float]] = {"packed": [], "unpacked": []}
    ways = {"packed": nullcontext, "unpacked": unpacked}
    for turn in range(rounds + 1):
        for name in sorted(ways, reverse=turn % 2 == 1):
            ids = [generator.integers(0, VOCAB_SIZE, length).tolist() for length in lengths]  # no cache helps
            begin = time.perf_counter()
            with ways[name]():
                await asyncio.gather(*(drained(answer(pair, Compare(one, 1, one, 1, MEASURES))) for one in ids))
            taken[name].append(time.perf_counter() - begin)
    packed, other = (times[1:] for times in taken.values())  # the first warms up
    ratios = [slow / fast for fast, slow in zip(packed, other, strict=True)]
    return {
        "items": items,
        "tokens": [min(lengths), longest],
        "packed_s": round(statistics.median(packed), 3),
        "unpacked_over_packed": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
    }


async def run(options: argparse.Namespace, folder: Path) -> None:
    shape = {"layers": 12, "hidden": 768, "ratio": 1.0, "triggers": 0.02}
    apart(lambda: build(folder, **shape, dtype=getattr(torch, options.dtype)))
    sides = [ModelSpec(name, str(folder / name), dtype=options.dtype) for name in "ab"]
    pair = load_pair(WorkerSpec("p", "hf", "", *sides, sequences=max(16, options.items)))
    for longest in LONGEST:
        found = await measure(pair, longest, options.items, options.rounds)
        print(json.dumps({"dtype": options.dtype, **found}), flush=True)
    await pair.close()


def main() -> None:
    keep_freed_memory()  # as a worker does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
