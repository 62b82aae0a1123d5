"""Whole rows as a safetensors file that is written while the worker computes: of it a chunk is held, and the next.

The header comes first and names every length, which are all known. Then the tokens' ids, then the rows of each item in
turn, and last what is small and known only at the end. A failure cuts the body short of its declared length.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.services.ahead import ahead
from app.services.cache.frames import CachedFrames
from app.services.gate import Ticket, cost
from app.services.registry import ServedModel
from app.services.safetensors import header, size_of
from rl_onoff.errors import InternalError
from workers.wire import Rows, Score

_Entry = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RowStream:
    """`length` bytes in `parts`."""

    length: int
    parts: AsyncGenerator[bytes, None]


async def begin(
    model: ServedModel, jobs: Sequence[Score], frames: CachedFrames, metadata: Mapping[str, Any]
) -> RowStream:
    """The file of the jobs' rows, after the first of them have come: what fails before is raised here."""
    entries = _entries(jobs, model.info.vocab_size)
    head = header(entries, metadata)
    parts = _parts(model, jobs, frames)
    try:
        first = await anext(parts)
    except BaseException:
        await parts.aclose()
        raise
    length = len(head) + sum(size_of(dtype, shape) for _, dtype, shape in entries)
    return RowStream(length, _joined([head, first], parts))


def _entries(jobs: Sequence[Score], vocab_size: int) -> list[_Entry]:
    counts = [len(job.ids) - job.start for job in jobs]
    entries: list[_Entry] = [(f"{i}.token_ids", "int64", (count,)) for i, count in enumerate(counts)]
    entries += [(f"{i}.values", job.dtype, (counts[i], vocab_size)) for i, job in enumerate(jobs)]
    if padding := _padding(entries):
        entries.append(("padding", "uint8", (padding,)))  # what follows is aligned, as torch wants it
    for name in ("token_logprobs", "entropy"):
        entries += [(f"{i}.{name}", "float64", (count,)) for i, count in enumerate(counts)]
    return entries


def _padding(entries: Sequence[_Entry]) -> int:
    return -sum(size_of(dtype, shape) for _, dtype, shape in entries) % 8


async def _parts(model: ServedModel, jobs: Sequence[Score], cached: CachedFrames) -> AsyncGenerator[bytes, None]:
    with model.pair.ticket(sum(cost(job, model.info.vocab_size) for job in jobs)) as ticket:
        ticket.reserve()  # what is refused later would be cut off
        ids = b"".join(np.asarray(job.ids[job.start :], dtype="<i8").tobytes() for job in jobs)
        logprobs: list[bytes] = []
        entropies: list[bytes] = []
        sent = len(ids)
        async with aclosing(ahead(_rows(model, jobs, cached, ticket))) as chunks:
            async for rows in chunks:
                logprobs.append(rows.token_logprobs.numpy().astype("<f8").tobytes())
                entropies.append(rows.entropy.numpy().astype("<f8").tobytes())
                sent += len(rows.values.data)
                yield ids + rows.values.data if ids else rows.values.data
                ids = b""
        yield bytes(-sent % 8) + b"".join(logprobs) + b"".join(entropies)


async def _rows(
    model: ServedModel, jobs: Sequence[Score], cached: CachedFrames, ticket: Ticket
) -> AsyncGenerator[Rows, None]:
    for job in jobs:
        left = len(job.ids) - job.start
        async with aclosing(cached.run(model.pair, job, ticket)) as frames:
            async for frame in frames:
                if isinstance(frame, Rows):
                    left -= frame.values.shape[0]
                    yield frame
        if left:
            raise InternalError("the worker scored another number of positions than asked for")


async def _joined(first: list[bytes], rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        while first:
            yield first.pop(0)
        async for part in rest:
            yield part
