"""Comparison in which the logits of a long solution never exist: hidden states meet the heads in chunks of positions.

What a job holds of both models is `[T, H]`, little beside `[T, V]`. Logits of a chunk come and go within one
computation of the worker's thread, so any number of jobs needs the memory of one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from workers import scoring
from workers.backends.base import Pair, bulk, together
from workers.measures import values
from workers.wire import Compare, Done, Frame, Usage, Values

Hidden = Any  # [n, H] of the backend's library

#: Of one model's logits, in float32. A matrix product over fewer positions reads the head more often.
CHUNK_BYTES = 72 << 20


class HiddenSequence(Protocol):
    """A sequence that stops before the head."""

    async def hidden(self, ids: list[int], start: int) -> Hidden:
        """Hidden states from which rows `start`..`len(ids)` follow: `[len(ids) - start + 1, H]`."""
        ...

    @property
    def forwards(self) -> int: ...


#: `[n, H]` -> `[n, columns]` as `measures.values` takes them.
Logits = Callable[[Hidden], Any]


async def compare(
    pair: Pair, job: Compare, a: HiddenSequence, b: HiddenSequence, logits_a: Logits, logits_b: Logits
) -> AsyncIterator[Frame]:
    """As `scoring.compare`. `logits_*` give the `[n, columns]` of hidden states `[n, H]` of either model."""
    count = len(job.a_ids) - job.a_start
    vocab_size = pair.info.a.vocab_size
    columns = max(pair.info.a.logit_columns, pair.info.b.logit_columns)
    step = max(1, min(scoring.MAX_POSITIONS, CHUNK_BYTES // (4 * columns)))

    @bulk
    def measure(hidden_a: Hidden, hidden_b: Hidden, begin: int) -> Values:
        return values(logits_a(hidden_a), logits_b(hidden_b), job, begin, vocab_size)

    for begin in range(0, count, scoring.MAX_POSITIONS):
        end = min(begin + scoring.MAX_POSITIONS, count)
        hidden_a, hidden_b = await together(
            a.hidden(job.a_ids[: job.a_start + end - 1], job.a_start + begin),
            b.hidden(job.b_ids[: job.b_start + end - 1], job.b_start + begin),
        )
        for first in range(begin, end, step):
            part = slice(first - begin, min(first + step, end) - begin)
            yield await pair.compute(measure, hidden_a[part], hidden_b[part], first)
    yield Done(Usage(a.forwards, b.forwards))
