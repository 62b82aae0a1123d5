"""A chunk of a comparison: what the kernel finds in it, as it crosses the wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from rl_onoff.errors import InternalError
from workers import comparison
from workers.comparison import Rows
from workers.threads import processors
from workers.wire import Array, Compare, Values

KERNEL = "streaming float32"


def values(a: Rows, b: Rows, job: Compare, begin: int, vocab_size: int) -> Values:
    """What `job` asks of A's and B's rows (logits, or log-probabilities) of its positions from `begin` on.

    Raises InternalError where a model gave no distribution.
    """
    ids = solution(job, begin, a.values.shape[0])
    with merged(a, job.merge, job.temperature) as left, merged(b, job.merge, job.temperature) as right:
        found = comparison.compare(
            left,
            right,
            job.measures,
            ids,
            vocab_size=vocab_size,
            temperature=job.temperature,
            threads=processors(),
        )
    if np.isnan(found.logprobs_a).any():
        raise InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")
    return Values(
        start=begin,
        measures={name: Array.of(column) for name, column in found.measures.items()},
        logprobs_a=Array.of(found.logprobs_a),
        logprobs_b=Array.of(found.logprobs_b),
        top1_agree=Array.of(found.top1_agree),
        kernel=KERNEL,
    )


def solution(job: Compare, begin: int, count: int) -> list[int]:
    """The scored tokens at `count` positions from `begin` on, merged ones under their common id."""
    ids = job.a_ids[job.a_start + begin : job.a_start + begin + count]
    return [job.merge[0] if token in job.merge else token for token in ids]


@contextmanager
def merged(rows: Rows, ids: Sequence[int], temperature: float) -> Iterator[Rows]:
    """The rows with all mass of `ids` on the first of them, at this temperature. Undone at the end."""
    if len(ids) < 2:
        yield rows
        return
    values = rows.values
    if rows.form != "float32":  # the sum of two half precision masses is none
        values = rows.widened().values
    elif not values.flags.writeable:
        values = values.copy()
    columns = list(ids)
    before = values[:, columns]
    scaled = before.astype(np.float64) / temperature
    highest = scaled.max(axis=1, keepdims=True)
    highest[np.isneginf(highest)] = 0.0
    with np.errstate(divide="ignore"):
        total = highest[:, 0] + np.log(np.exp(scaled - highest).sum(axis=1))
    values[:, columns] = -np.inf
    values[:, columns[0]] = total * temperature
    try:
        yield Rows(values, "float32")
    finally:
        values[:, columns] = before
