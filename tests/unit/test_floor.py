"""A model against itself in passes of other shapes: which rows meet, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rl_onoff import divergence
from workers import floor, scoring
from workers.wire import Compare, Done, Values

V = 16


class Sequence:
    """Logits that depend on the position, and a little on how many are computed at once."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, int]] = []
        self.forwards = 0

    async def rows(self, ids: list[int], start: int, *, logits: bool = False) -> np.ndarray:
        assert logits
        self.forwards += 1
        count = len(ids) - start + 1
        self.passes.append((start, count))
        rows = [np.random.default_rng(t).normal(size=V) for t in range(start, start + count)]
        return (np.stack(rows) * (1 + 1e-3 * count)).astype(np.float32)


class Model:
    info = SimpleNamespace(vocab_size=V)

    def __init__(self) -> None:
        self.used = Sequence()

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[Sequence]:
        yield self.used


class Pair:
    def __init__(self) -> None:
        self.a, self.b = Model(), Model()

    async def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


async def measured(pair: Any, job: Compare) -> tuple[dict[str, np.ndarray], Done]:
    *frames, done = [frame async for frame in floor.floor(pair, job)]
    values = [frame for frame in frames if isinstance(frame, Values)]
    counts = [frame.logprobs_a.shape[0] for frame in values]
    assert [frame.start for frame in values] == np.cumsum([0, *counts[:-1]]).tolist()
    assert isinstance(done, Done)
    return {n: np.concatenate([frame.measures[n].numpy() for frame in values]) for n in job.measures}, done


@pytest.mark.parametrize("temperature", [1.0, 0.2])
async def test_every_measure_is_that_of_the_two_passes(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    monkeypatch.setattr(scoring, "MAX_POSITIONS", 25)
    pair, ids = Pair(), [3, 1, *range(10), *range(15), *range(13)]
    job = Compare(
        ids, 2, ids, 2, ["js", "kl_ab", "renyi:2", "topk_overlap:3", "delta_logp"], temperature, floor="pass_shape"
    )
    found, done = await measured(pair, job)
    whole = [(2, 25), (27, 13)]
    again = [(2, 1), (3, 8), (11, 16), (27, 1), (28, 8), (36, 4)]
    assert pair.a.used.passes == [whole[0], *again[:3], whole[1], *again[3:]]
    assert (done.usage.a_forwards, done.usage.b_forwards) == (8, 0)
    rows = []
    for passes in (whole, again):
        logits = np.concatenate([await Sequence().rows([0] * (t + n - 1), t, logits=True) for t, n in passes])
        scaled = logits.astype(np.float64) / temperature
        rows.append(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))
    want = divergence.compute(*rows, job.measures, np.array(ids[2:]))
    for name in job.measures:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-3, atol=1e-7, err_msg=name)
    assert found["js"].max() > 0


async def test_the_floor_of_b_is_of_bs_rows() -> None:
    pair = Pair()
    _, done = await measured(
        pair, Compare([1, 2, 3], 1, [4, 1, 2, 3], 2, ["js"], floor="bfloat16_logits", floor_side="b")
    )
    assert pair.a.used.passes == []
    assert pair.b.used.passes == [(2, 2)]
    assert (done.usage.a_forwards, done.usage.b_forwards) == (0, 1)
