"""The noise floor of a comparison: a model against itself, its logits rounded as many engines give them.

bfloat16 keeps eight bits. A row against its own rounded logits has a JS of about 2e-5 whatever the models are; what is
measured between two models whose logits were rounded is this at least.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from workers import scoring
from workers.backends.base import Pair
from workers.comparison import Rows
from workers.measures import values
from workers.sampling import to_numpy
from workers.wire import Compare, Done, Frame, Usage, Values


async def floor(pair: Pair, job: Compare) -> AsyncIterator[Frame]:
    """As `scoring.compare`, of the model `job.floor` and itself with logits in bfloat16."""
    model, ids, start = (pair.b, job.b_ids, job.b_start) if job.floor == "b" else (pair.a, job.a_ids, job.a_start)
    size = scoring.positions_per_chunk(model.info.vocab_size)
    async with model.sequence() as sequence:
        for begin in range(start, len(ids), size):
            end = min(begin + size, len(ids))
            logits = await sequence.rows(ids[: end - 1], begin, logits=True)
            yield await pair.compute(_measure, logits, job, begin - start)
        forwards = sequence.forwards
    yield Done(Usage(b_forwards=forwards) if job.floor == "b" else Usage(a_forwards=forwards))


def _measure(logits: Any, job: Compare, begin: int) -> Values:
    host = np.ascontiguousarray(to_numpy(logits), dtype=np.float32)
    return values(Rows.of(host), Rows.of(scoring.bfloat16_bits(host)), job, begin, host.shape[1])
