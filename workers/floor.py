"""The noise floor of a comparison: a model against itself, where nothing but the arithmetic differs.

What is measured between two models whose rows come of such arithmetic is this at least. bfloat16 keeps eight bits: a
row against its own rounded logits has a JS of about 2e-5 whatever the models are. In passes of another shape sums are
taken in another order, and kernels may be others.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

import numpy as np

from workers import scoring
from workers.backends.base import CachedSequence, Pair, bulk
from workers.comparison import Rows
from workers.measures import values
from workers.sampling import to_numpy
from workers.wire import Compare, Done, Frame, Usage, Values

#: Tokens of the passes that are compared with those of a score, by turns: as many as are decoded, judged, or batched.
PASSES: Final = (1, 8, 32)


async def floor(pair: Pair, job: Compare) -> AsyncIterator[Frame]:
    """As `scoring.compare`, of the model `job.floor_side` as it is and, in B's place, as `job.floor` has it."""
    of_b = job.floor_side == "b"
    model, ids, start = (pair.b, job.b_ids, job.b_start) if of_b else (pair.a, job.a_ids, job.a_start)
    size = scoring.positions_per_chunk(model.info.vocab_size)
    passes = itertools.cycle(PASSES)
    async with model.sequence() as sequence:
        for begin in range(start, len(ids), size):
            end = min(begin + size, len(ids))
            logits = await sequence.rows(ids[: end - 1], begin, logits=True)
            if job.floor == "bfloat16_logits":
                yield await pair.compute(_rounded, logits, job, begin - start)
                continue
            async for first, again in _again(sequence, ids, begin, end, passes):
                part = logits[first - begin : first - begin + len(again)]
                yield await pair.compute(_measure, part, again, job, first - start)
        forwards = sequence.forwards
    yield Done(Usage(b_forwards=forwards) if of_b else Usage(a_forwards=forwards))


async def _again(
    sequence: CachedSequence, ids: list[int], begin: int, end: int, passes: itertools.cycle[int]
) -> AsyncIterator[tuple[int, Any]]:
    """Positions and the logits of rows `begin`..`end - 1`, computed anew in passes of so many tokens."""
    while begin < end:
        stop = min(begin + next(passes), end)
        yield begin, await sequence.rows(ids[: stop - 1], begin, logits=True)
        begin = stop


@bulk
def _rounded(logits: Any, job: Compare, begin: int) -> Values:
    host = _on_host(logits)
    return values(Rows.of(host), Rows.of(scoring.bfloat16_bits(host)), job, begin, host.shape[1])


@bulk
def _measure(logits: Any, again: Any, job: Compare, begin: int) -> Values:
    host = _on_host(logits)
    return values(Rows.of(host), Rows.of(_on_host(again)), job, begin, host.shape[1])


def _on_host(logits: Any) -> Any:
    return np.ascontiguousarray(to_numpy(logits), dtype=np.float32)
