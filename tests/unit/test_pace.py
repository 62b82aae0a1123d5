"""The choice of drafter and length: near the best fixed one, whatever survives and whatever passes cost."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rl_onoff.policy import Lead
from workers.costs import MeasuredCosts
from workers.pace import LENGTHS, Paces
from workers.wire import SamplingParams, SwitchGenerate


def job(**fields: Any) -> SwitchGenerate:
    return SwitchGenerate([1], 5, SamplingParams(), **{"policy": {"kind": "always_a"}, **fields})


def costs(base: float, slope: float) -> MeasuredCosts:
    return MeasuredCosts({(rows, tokens): base + slope * rows * tokens for rows in (1, 8) for tokens in (1, 4, 16)})


async def run(
    costs_a: MeasuredCosts, costs_b: MeasuredCosts, job: SwitchGenerate, breaks: float, requests: int
) -> float:
    """Seconds per token of requests side by side whose drafts break with a constant probability."""
    paces = Paces({"a": costs_a, "b": costs_b})
    rng = random.Random(1)
    seconds, made = 0.0, 0
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(paces.running(job)) for _ in range(requests)]
        while made < 3000:
            plans = [pace.choose("a", 1000) for pace in running]
            assert len(set(plans)) == 1  # side by side they draft alike
            drafter, count = plans[0]
            passes = (costs_a, costs_b) if drafter == "a" else (costs_b, costs_a)
            seconds += count * passes[0].seconds(requests, 1) + passes[1].seconds(requests, count)
            for pace in running:
                kept = next((i + 1 for i in range(count) if rng.random() < breaks), count + 1)
                made += min(kept, count)
                pace.breaks.walked("a", drafter, min(kept, count), kept > count)
    return seconds / made


@pytest.mark.parametrize("requests", [1, 8])
@pytest.mark.parametrize("ratio", [1.0, 4.0])
@pytest.mark.parametrize("slope", [0.0, 0.03, 0.15])
@pytest.mark.parametrize("breaks", [0.005, 0.02, 0.1, 0.3, 0.7])
async def test_close_to_the_best_fixed_length(breaks: float, slope: float, ratio: float, requests: int) -> None:
    a, b = costs(1, slope), costs(ratio, ratio * slope)
    best = min([await run(a, b, job(lookahead=n), breaks, requests) for n in LENGTHS])
    assert await run(a, b, job(), breaks, requests) < 1.08 * best


async def test_never_much_dearer_than_token_by_token() -> None:
    for slope in (0.0, 0.1, 0.5):
        for breaks in (0.02, 0.3, 0.9):
            a, b = costs(1, slope), costs(1, slope)
            lockstep = (a.seconds(8, 1) + b.seconds(8, 1)) / 8
            assert await run(a, b, job(), breaks, 8) < 1.05 * lockstep


async def test_rounds_that_begin_together_follow_one_plan() -> None:
    """Also where what the first of them has just learned speaks for another."""
    paces = Paces({"a": costs(1, 0.01), "b": costs(1, 0.01)})
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(paces.running(job())) for _ in range(2)]
        plan = first.choose("a", 100)
        for _ in range(50):
            first.breaks.walked("a", "a", 1, False)
        assert second.choose("a", 100) == plan
        changed = first.choose("a", 100)
        assert changed[1] < plan[1]
        assert second.choose("a", 100) == changed


async def test_a_request_alone_follows_nobody_who_is_gone() -> None:
    paces = Paces({"a": costs(1, 0.01), "b": costs(1, 0.01)})
    breaking = job(policy={"kind": "always_b"})
    async with paces.running(breaking) as pace:
        for _ in range(50):
            pace.breaks.walked("a", "a", 1, False)
        assert pace.choose("a", 100)[1] < 4
    async with paces.running(job()) as pace:
        for _ in range(50):
            pace.breaks.walked("a", "a", 8, True)
        assert pace.choose("a", 100)[1] > 8


async def test_b_may_draft_where_it_leads() -> None:
    paces = Paces({"a": costs(1, 0.01), "b": costs(1, 0.01)})
    async with paces.running(job()) as pace:
        for _ in range(30):
            pace.breaks.walked("b", "a", 1, False)
            pace.breaks.walked("b", "b", 8, True)
        assert pace.choose("b", 100)[0] == "b"
        assert pace.choose("a", 100)[0] == "a"


async def test_one_of_many_in_bs_lead_stays_in_step() -> None:
    paces = Paces({"a": costs(1, 0.01), "b": costs(1, 0.01)})
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(paces.running(job())) for _ in range(8)]
        for _ in range(30):
            running[0].breaks.walked("a", "a", 8, True)
        plans = {pace.choose("a" if i else "b", 100) for i, pace in enumerate(running)}
    assert len(plans) == 1
    assert plans.pop()[0] == "a"


async def test_a_short_rest_is_drafted_short() -> None:
    for passes in (None, {"a": costs(1, 0), "b": costs(1, 0)}):
        async with Paces(passes).running(job()) as pace:  # type: ignore[arg-type]
            assert pace.choose("a", 2)[1] <= 2
        async with Paces(passes).running(job(lookahead=8)) as pace:  # type: ignore[arg-type]
            assert pace.choose("b", 3) == ("a", 3)
            assert pace.choose("b", 30) == ("a", 8)


async def test_a_swapped_request_is_drafted_by_its_own_a() -> None:
    passes: dict[Lead, MeasuredCosts] = {"a": costs(1, 0), "b": costs(3, 0)}
    counts = []
    for swapped in (False, True):
        async with Paces(passes).running(job(swapped=swapped)) as pace:
            for _ in range(10):
                pace.breaks.walked("a", "a", 9, False)
                pace.breaks.walked("a", "b", 1, False)
            drafter, count = pace.choose("a", 100)
            assert drafter == "a"
            counts.append(count)
    assert counts[0] > counts[1]  # drafts by the dearer model are short


async def test_policies_learn_apart_and_are_not_kept_for_ever() -> None:
    paces = Paces(None)
    async with paces.running(job()) as first, paces.running(job()) as second:
        assert first.breaks is second.breaks
    for other in (job(policy={"kind": "always_b"}), job(swapped=True)):
        async with paces.running(other) as pace:
            assert pace.breaks is not first.breaks
    for i in range(Paces.KEPT):
        async with paces.running(job(policy={"kind": "random", "rate": i / 100})):
            pass
    async with paces.running(job()) as pace:
        assert pace.breaks is not first.breaks


async def test_calls_are_timed_where_no_passes_were_measured() -> None:
    paces = Paces(None)
    async with paces.running(job(swapped=True)) as pace:
        pace.timed("a", 4, 4.0, 3.0)
    assert paces.fitted["b"].seconds(1, 1) == 1.0
    assert paces.fitted["a"].seconds(1, 4) == 3.0
