"""Sequences come into step, and the engine's threads have the processors to themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.conftest import Case
from tests.contract.test_backend import GREEDY, tokens
from workers.backends.hf.calls import DraftCall, RowsCall
from workers.backends.hf.engine import _may_wait
from workers.backends.hf.slots import Slot
from workers.wire import SamplingParams, SwitchGenerate

ROOT = Path(__file__).parents[2]
_THREADS = 24


def test_only_the_judge_of_a_draft_waits_and_no_longer_than_the_draft_took() -> None:
    def call(length: int, start: int, waited: int = 0) -> RowsCall:
        made = RowsCall(Any, Any, [3] * length, start, False, Any)  # type: ignore[arg-type]
        made.waited = waited
        return made

    judge = call(40, 37)  # four rows: it judges a draft of four
    assert _may_wait(judge, 4, rests=[2, 9])
    assert not _may_wait(judge, 4, rests=[])  # nobody drafts
    assert not _may_wait(judge, 4, rests=[5, 16])  # all drafts there are take longer
    assert not _may_wait(call(40, 37, waited=4), 4, rests=[1])  # it has waited as long as it may
    assert not _may_wait(call(40, 40), 1, rests=[1])  # a single new token
    assert not _may_wait(call(40, 40), 30, rests=[1])  # a prefill
    assert not _may_wait(call(400, 1), 400, rests=[1])  # a score


async def test_who_waits_for_drafts_to_be_judged_with_is_kept_back_until_they_ask(llama: Case) -> None:
    """What is handed back tells the engine to wait a moment for the calls that follow from it."""
    model: Any = llama.pair.a
    future = asyncio.get_running_loop().create_future
    judge = RowsCall(model, Slot(0), [3] * 9, 6, False, future())

    def draft(length: int) -> DraftCall:
        return DraftCall(model, Slot(1), [3] * length, length, False, future(), 1, GREEDY, frozenset())

    async def step(*calls: RowsCall) -> Any:
        return await model.engine.compute(model.engine._step, list(calls))  # in its thread

    assert await step(judge, draft(9)) == ([judge], 1)
    assert await step(draft(9)) == ([], 0)
    assert await step(judge, draft(40)) == ([], 0)  # not for one whose prompt takes a pass of its own


@pytest.mark.parametrize("apart", [6, 7, 8])
async def test_requests_that_start_apart_come_into_step(llama: Case, monkeypatch: Any, apart: int) -> None:
    """Two that take turns, one drafting while the other waits to be judged, would each be judged alone for ever."""
    passes: list[int] = []
    judged: list[int] = []
    begin, loop = asyncio.Event(), asyncio.get_running_loop()
    draft, judge = llama.pair.a.forward, llama.pair.b.forward  # type: ignore[attr-defined]

    def drafting(calls: list[RowsCall]) -> list[torch.Tensor]:
        passes.append(len(calls))
        if len(passes) == apart:
            loop.call_soon_threadsafe(begin.set)
            time.sleep(0.02)  # the other is there before the next pass
        return draft(calls)

    monkeypatch.setattr("workers.backends.hf.engine._GATHER", 0.05)  # of a busy machine
    monkeypatch.setattr(llama.pair.a, "forward", drafting)
    monkeypatch.setattr(llama.pair.b, "forward", lambda calls: (judged.append(len(calls)), judge(calls))[1])
    jobs = [
        SwitchGenerate(
            llama.prompt(9, i), 100, SamplingParams(seed=i), {"kind": "always_a"}, ignore_eos=True, lookahead=4
        )
        for i in range(2)
    ]

    async def later() -> None:
        await begin.wait()
        await tokens(llama, jobs[1])

    await asyncio.gather(tokens(llama, jobs[0]), later())
    assert judged.count(2) > 0.6 * len(judged)


_LOAD = f"""
import os, time, torch
from workers.backends import load_pair
from workers.wire import ModelSpec, WorkerSpec

def new_threads():
    return len(os.listdir("/proc/self/task")) - before

torch.set_num_threads({_THREADS})
before = len(os.listdir("/proc/self/task"))
load_pair(WorkerSpec("p", "hf", "", ModelSpec("a", "demo/base"), ModelSpec("b", "demo/rl")))
end = time.monotonic() + 10
while new_threads() >= {_THREADS} // 2 and time.monotonic() < end:  # they take a moment to end
    time.sleep(0.05)
print(new_threads(), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_loading_leaves_no_threads_of_openmps_behind() -> None:
    """Where there are more of these than processors, those that wait may not spin: a pass takes a third longer."""
    ran = subprocess.run([sys.executable, "-c", _LOAD], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert int(ran.stdout) < _THREADS // 2


@pytest.mark.parametrize(
    ("lengths", "most", "passes"),
    [
        ((34, 37, 40), 512, [3]),  # the shorter filled up
        ((34, 37, 40), 80, [2, 1]),  # a pass has so many tokens at most
        ((34, 60, 40), 512, [2, 1]),  # and little filling
        ((34, 37, 40), 16, [1, 1, 1]),
    ],
)
async def test_items_of_about_one_length_share_a_pass(
    llama: Case, monkeypatch: Any, lengths: tuple[int, ...], most: int, passes: list[int]
) -> None:
    model: Any = llama.pair.a
    texts = [llama.prompt(length, 50 + i) for i, length in enumerate(lengths)]

    async def states(ids: list[int]) -> torch.Tensor:
        async with model.sequence() as sequence:
            hidden: torch.Tensor = await sequence.hidden(ids, 2)
            return hidden

    seen: list[int] = []
    forward = model.forward
    monkeypatch.setattr("workers.backends.hf.engine._GATHER", 0.05)
    monkeypatch.setattr(model, "pass_tokens", most)
    monkeypatch.setattr(model, "forward", lambda calls: (seen.append(len(calls)), forward(calls))[1])
    together = await asyncio.gather(*map(states, texts))
    assert seen == passes
    for ids, hidden in zip(texts, together, strict=True):
        alone = await states(ids)
        assert hidden.shape == alone.shape == (len(ids) - 1, alone.shape[1])
        assert torch.allclose(hidden, alone, atol=1e-5)


async def test_rows_normalised_together_are_those_normalised_alone(llama: Case) -> None:
    model: Any = llama.pair.a
    future = asyncio.get_running_loop().create_future
    calls = [
        RowsCall(model, Slot(i), llama.prompt(20, seed=i), start, False, future())
        for i, start in enumerate((20, 17, 19))
    ]

    def rows(joins: bool) -> list[torch.Tensor]:
        model.joins = joins
        for call in calls:
            call.slot.ids = []
            model.shape(call)
        found: list[torch.Tensor] = model.forward(calls)
        return found

    alone, together = [await model.engine.compute(rows, joins) for joins in (False, True)]
    for call, one, other in zip(calls, alone, together, strict=True):
        assert one.shape == other.shape == (call.wanted, llama.vocab_size)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
