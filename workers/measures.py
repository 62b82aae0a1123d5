"""A chunk of a comparison: what the kernel finds in it, as it crosses the wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from rl_onoff.errors import InternalError
from workers import comparison, device
from workers.comparison import Compared, Rows
from workers.threads import processors
from workers.wire import Array, Compare, Values

if TYPE_CHECKING:
    import torch

KERNEL = "streaming float32"

#: Rows in half precision whose tokens are merged are widened, so many bytes of them at a time.
WIDENED_BYTES = 8 << 20


def values(a: Rows | torch.Tensor, b: Rows | torch.Tensor, job: Compare, begin: int, vocab_size: int) -> Values:
    """What `job` asks of A's and B's rows (logits, or log-probabilities) of its positions from `begin` on.

    Both on the processor, or both tensors that `device.reaches`. Raises InternalError where a model gave no
    distribution.
    """
    if isinstance(a, Rows) and isinstance(b, Rows):
        found, kernel = _on_processor(a, b, job, begin, vocab_size), KERNEL
    elif isinstance(a, Rows) or isinstance(b, Rows):
        raise TypeError("one model's rows are on a device, the other's on the processor")
    else:
        found, kernel = _on_device(a, b, job, begin, vocab_size), device.KERNEL
    if np.isnan(found.logprobs_a).any():
        raise InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")
    return Values(
        start=begin,
        measures={name: Array.of(column) for name, column in found.measures.items()},
        logprobs_a=Array.of(found.logprobs_a),
        logprobs_b=Array.of(found.logprobs_b),
        top1_agree=Array.of(found.top1_agree),
        kernel=kernel,
    )


def _on_processor(a: Rows, b: Rows, job: Compare, begin: int, vocab_size: int) -> Compared:
    count, columns = a.values.shape
    ids = solution(job, begin, count)
    step = count
    if len(job.merge) > 1 and (a.form, b.form) != ("float32", "float32"):
        step = max(processors(), WIDENED_BYTES // (4 * columns))
    parts = []
    for first in range(0, max(1, count), max(1, step)):
        here = slice(first, first + step)
        both = [merged(rows.part(here), job.merge, job.temperature) for rows in (a, b)]
        with both[0] as left, both[1] as right:
            part = comparison.compare(
                left,
                right,
                job.measures,
                ids[here],
                vocab_size=vocab_size,
                temperature=job.temperature,
                threads=processors(),
            )
        parts.append(part)
    return Compared.joined(parts)


def _on_device(a: torch.Tensor, b: torch.Tensor, job: Compare, begin: int, vocab_size: int) -> Compared:
    ids = solution(job, begin, a.shape[0])
    if len(job.merge) > 1:
        a, b = (_merged(rows, job.merge, job.temperature) for rows in (a, b))
    return device.compare(a, b, job.measures, ids, vocab_size=vocab_size, temperature=job.temperature)


def _merged(rows: torch.Tensor, ids: Sequence[int], temperature: float) -> torch.Tensor:
    """As `merged`, in a float32 copy."""
    columns = list(ids)
    total = (rows[:, columns].double() / temperature).logsumexp(-1) * temperature
    rows = rows.float().clone()
    rows[:, columns] = -float("inf")
    rows[:, columns[0]] = total.float()
    return rows


def solution(job: Compare, begin: int, count: int) -> list[int]:
    """The scored tokens at `count` positions from `begin` on, merged ones under their common id."""
    return common(job.a_ids[job.a_start + begin : job.a_start + begin + count], job.merge)


def common(ids: Sequence[int], merge: Sequence[int]) -> list[int]:
    """The ids, those in `merge` as the first of them."""
    return [merge[0] if token in merge else token for token in ids]


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
