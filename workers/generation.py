"""Plain sampling from one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from workers import sampling
from workers.backends.base import Pair
from workers.logprobs import described
from workers.wire import Done, Frame, Generate, SamplingParams, Tokens, Usage


async def generate(pair: Pair, job: Generate) -> AsyncIterator[Frame]:
    """Frames of one token each, then `Done`. Stops at the model's own end-of-sequence tokens, once emitted."""
    model, info = (pair.a, pair.info.a) if job.side == "a" else (pair.b, pair.info.b)
    eos = frozenset() if job.ignore_eos else frozenset(info.eos_ids)
    ids = list(job.ids)
    usage = Usage()
    async with model.sequence() as sequence:
        for _ in range(job.max_tokens):
            rows = await sequence.rows(ids, len(ids))
            frame = await pair.compute(_draw, rows, job.sampling, len(ids), job.logprobs)
            ids.append(frame.ids[0])
            usage = Usage(a_forwards=sequence.forwards) if job.side == "a" else Usage(b_forwards=sequence.forwards)
            yield Tokens(
                frame.ids,
                usage,
                logprobs=frame.logprobs,
                top_ids=frame.top_ids,
                top_logprobs=frame.top_logprobs,
            )
            if frame.ids[0] in eos:
                yield Done(usage, "stop")
                return
    yield Done(usage, "length")


def _draw(rows: Any, params: SamplingParams, position: int, logprobs: int | None) -> Tokens:
    """One token from a `[1, V]` row, with its raw log-probability and the k best if asked for."""
    token = sampling.choose(rows, params, [position])[0]
    if logprobs is None:
        return Tokens([token], Usage())
    told = described(rows, [token], logprobs)
    return Tokens([token], Usage(), logprobs=told.tokens, top_ids=told.top_ids, top_logprobs=told.top_logprobs)
