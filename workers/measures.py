"""A chunk of a comparison: what the kernel finds in it, as it crosses the wire."""

from __future__ import annotations

import os

import numpy as np

from rl_onoff.errors import InternalError
from workers import comparison
from workers.wire import Array, Compare, Values


def values(a: comparison.Rows, b: comparison.Rows, job: Compare, begin: int, vocab_size: int) -> Values:
    """What `job` asks of A's and B's rows (logits, or log-probabilities) of its positions from `begin` on.

    Raises InternalError where a model gave no distribution.
    """
    first = job.a_start + begin
    found = comparison.compare(
        a,
        b,
        job.measures,
        job.a_ids[first : first + a.values.shape[0]],
        vocab_size=vocab_size,
        temperature=job.temperature,
        threads=_threads(),
    )
    if np.isnan(found.logprobs_a).any():
        raise InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")
    return Values(
        start=begin,
        measures={name: Array.of(column) for name, column in found.measures.items()},
        logprobs_a=Array.of(found.logprobs_a),
        logprobs_b=Array.of(found.logprobs_b),
        top1_agree=Array.of(found.top1_agree),
    )


def _threads() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
