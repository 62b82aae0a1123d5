"""Teacher-forced scoring: rows of one model, or measures of both, over a given sequence, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import array_api_compat
import numpy as np

from rl_onoff import divergence
from rl_onoff.errors import InternalError
from workers import comparison, device
from workers.backends.base import Pair, both_sequences, bulk, together
from workers.judge import measure
from workers.measures import common, values
from workers.measures import solution as measured_ids
from workers.sampling import at_temperature, log_softmax, on_host, to_numpy, top
from workers.wire import Array, Compare, Done, Frame, Rows, Score, Usage, Values

#: float32 bytes of one model's rows held at a time; the float64 temporaries of a measure come on top, a few times that.
CHUNK_BYTES = 16 << 20
#: Tokens of one forward pass: attention over a long solution in one piece would need memory quadratic in it.
MAX_POSITIONS = 512


def positions_per_chunk(vocab_size: int) -> int:
    return max(1, min(MAX_POSITIONS, CHUNK_BYTES // (4 * vocab_size)))


async def score(pair: Pair, job: Score) -> AsyncIterator[Frame]:
    """`Rows` of consecutive positions, then `Done`."""
    model = pair.a if job.side == "a" else pair.b
    size = positions_per_chunk(model.info.vocab_size)
    async with model.sequence() as sequence:
        for begin in range(job.start, len(job.ids), size):
            end = min(begin + size, len(job.ids))
            rows = await sequence.rows(job.ids[: end - 1], begin, logits=job.kind == "logits")
            yield await pair.compute(_cut, rows, job, begin, end)
        forwards = sequence.forwards
    yield Done(Usage(a_forwards=forwards) if job.side == "a" else Usage(b_forwards=forwards))


@bulk
def _cut(rows: Any, job: Score, begin: int, end: int) -> Rows:
    xp = array_api_compat.array_namespace(rows)
    logits = rows / job.temperature if job.kind == "logits" and job.temperature != 1 else rows
    logprobs = log_softmax(logits) if job.kind == "logits" else at_temperature(rows, job.temperature)
    if len(job.merge) > 1:
        logprobs = _merged(logprobs, job.merge)
    values = {"logits": logits, "logprobs": logprobs}.get(job.kind)
    values = xp.exp(logprobs) if values is None else values
    device = array_api_compat.device(rows)
    token_ids = xp.asarray(common(job.ids[begin:end], job.merge), dtype=xp.int64, device=device)
    token_logprobs = to_numpy(divergence.gather(logprobs, token_ids))
    if np.isnan(token_logprobs).any():  # raw logits were not looked at for infinities
        raise InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")
    ids = tail = None
    if job.top_k is not None:
        values, top_ids = top(values, job.top_k)
        kept = np.take_along_axis(to_numpy(logprobs), host_ids := to_numpy(top_ids).astype(np.int64), axis=-1)
        tail = Array.of(np.maximum(0.0, 1.0 - np.exp(kept.astype(np.float64)).sum(axis=-1)))
        ids = Array.of(host_ids)
    return Rows(
        start=begin - job.start,
        values=_stored(to_numpy(values), job.dtype),
        ids=ids,
        token_logprobs=Array.of(token_logprobs),
        entropy=Array.of(to_numpy(divergence.entropy(logprobs))),
        tail=tail,
    )


def _stored(values: Any, dtype: str) -> Array:
    """Rounded to nearest even; bfloat16 as its bit pattern."""
    if dtype == "bfloat16":
        return Array.of(bfloat16_bits(values), "bfloat16")
    return Array.of(np.asarray(values).astype(dtype), dtype)


def bfloat16_bits(values: Any) -> Any:
    """The nearest bfloat16s, ties to even, as uint16; NaN is excluded by construction."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


async def compare(pair: Pair, job: Compare) -> AsyncIterator[Frame]:
    """`Values` of consecutive positions of the solution, then `Done`."""
    solution = job.a_ids[job.a_start :]
    size = positions_per_chunk(pair.info.a.vocab_size)
    async with both_sequences(pair) as (a, b):
        for begin in range(0, len(solution), size):
            end = min(begin + size, len(solution))
            rows_a, rows_b = await together(
                a.rows(job.a_ids[: job.a_start + end - 1], job.a_start + begin),
                b.rows(job.b_ids[: job.b_start + end - 1], job.b_start + begin),
            )
            yield await pair.compute(_measure, rows_a, rows_b, job, begin, solution[begin:end])
        usage = Usage(a.forwards, b.forwards)
    yield Done(usage)


@bulk
def _measure(rows_a: Any, rows_b: Any, job: Compare, begin: int, solution: list[int]) -> Values:
    host_a, host_b = on_host(rows_a), on_host(rows_b)
    if host_a is not None and host_b is not None and host_a.dtype == host_b.dtype == np.float32:
        return values(comparison.Rows.of(host_a), comparison.Rows.of(host_b), job, begin, host_a.shape[1])
    if device.reaches(rows_a) and device.reaches(rows_b):
        return values(rows_a, rows_b, job, begin, rows_a.shape[1])
    xp = array_api_compat.array_namespace(rows_a)
    rows_a, rows_b = at_temperature(rows_a, job.temperature), at_temperature(rows_b, job.temperature)
    if len(job.merge) > 1:
        rows_a, rows_b, solution = (
            _merged(rows_a, job.merge),
            _merged(rows_b, job.merge),
            measured_ids(job, begin, len(solution)),
        )
    token_ids = xp.asarray(solution, dtype=xp.int64, device=array_api_compat.device(rows_a))
    measured = measure(rows_a, rows_b, job.measures, token_ids)
    agree = divergence.compute(rows_a, rows_b, ["top1_agree"])["top1_agree"]
    return Values(
        start=begin,
        measures={name: Array.of(to_numpy(values)) for name, values in measured.items()},
        logprobs_a=Array.of(to_numpy(divergence.gather(rows_a, token_ids))),
        logprobs_b=Array.of(to_numpy(divergence.gather(rows_b, token_ids))),
        top1_agree=Array.of(to_numpy(agree)),
        kernel="reference float64",
    )


def _merged(rows: Any, ids: list[int]) -> Any:
    """Rows of log-probabilities, copied, with all mass of `ids` on the first of them and -inf on the others."""
    xp = array_api_compat.array_namespace(rows)
    own = xp.astype(rows[:, list(ids)], xp.float64)
    highest = xp.max(own, axis=-1, keepdims=True)
    highest = xp.where(xp.isinf(highest), xp.zeros_like(highest), highest)
    with np.errstate(divide="ignore"):
        total = xp.log(xp.sum(xp.exp(own - highest), axis=-1)) + highest[:, 0]
    merged = xp.asarray(rows, copy=True)
    merged[:, list(ids)] = -math.inf
    merged[:, ids[0]] = xp.astype(total, rows.dtype)
    return merged
