"""What one engine that holds the pair promises beyond the suite: the end of the context, preemption, cancellation."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rl_onoff.errors import ConfigurationError, UnsupportedModel
from tests.contract import tiny
from tests.contract.conftest import spec
from tests.contract.test_backend import GREEDY, gap
from tests.contract.test_lookahead import Run, cases, loaded, run, typical_divergences
from workers.backends import load_pair
from workers.host import answer
from workers.wire import Done, SamplingParams, SwitchGenerate, Tokens

Folders = dict[str, tuple[Path, Path]]
ONE = {"engines": "one", "draft_tokens": 4}


def core(pair: Any) -> Any:
    return pair.b._engine.engine_core.engine_core


async def test_one_engine_writes_what_two_write_one_token_at_a_time(folders: Folders) -> None:
    async with loaded(folders["llama"], "float32", sequences=8) as two:
        jobs = cases(two, await typical_divergences(two), 12, seed=3)
        to_the_end = SwitchGenerate([5] * 200, tiny.MAX_LEN - 200, SamplingParams(seed=2), jobs[0].policy, ["js"], True)
        from_one = SwitchGenerate([5], 30, SamplingParams(seed=3), jobs[0].policy, ["js"], True)
        jobs += [to_the_end, from_one]
        want = [await run(two, SwitchGenerate(**{**fields(job), "lookahead": 0})) for job in jobs]
    async with loaded(folders["llama"], "float32", sequences=8, options=ONE) as one:
        assert one.a._engine is one.b._engine  # type: ignore[attr-defined]
        same(await asyncio.gather(*(run(one, job) for job in jobs)), want)


async def test_in_half_precision_what_differs_from_lock_step_was_within_the_noise(tmp_path: Path) -> None:
    wide = tiny.write_pair(tmp_path, "llama", hidden_size=512, intermediate_size=1024, head_dim=128)
    ids = [5 + 7 * i % 90 for i in range(60)]
    halves = {"float32_head": False}
    async with loaded(wide, "bfloat16", sequences=8, options=halves) as two, two.a.sequence() as a:
        want = await a.rows(ids, 1)
    async with loaded(wide, "bfloat16", sequences=8, options={**ONE, **halves}) as one:
        assert one.info.a.dtype == one.info.b.dtype == "bfloat16"
        async with one.a.sequence() as a:
            assert gap(await a.rows(ids, 1), want) <= 4 * one.info.noise["logprob"]
        jobs = cases(one, await typical_divergences(one), 24, seed=4)
        for job, (*got, doubts) in zip(jobs, await asyncio.gather(*(judged(one, job) for job in jobs)), strict=True):
            *wanted, more = await judged(one, SwitchGenerate(**{**fields(job), "lookahead": 0}))
            assert got == wanted or doubts + more > 0


async def judged(pair: Any, job: SwitchGenerate) -> tuple[list[int], str, int]:
    """Tokens, leads, and how many decisions were within the noise."""
    ids: list[int] = []
    leads = ""
    async for frame in answer(pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
    assert isinstance(frame, Done)
    return ids, leads, frame.usage.within_noise


async def test_sequences_that_are_preempted_go_on(folders: Folders) -> None:
    options = {**ONE, "engine": {"num_gpu_blocks_override": 11}}  # one of them at full length, and little more
    policy = {"kind": "random", "rate": 0.1}
    jobs = [SwitchGenerate([3 + i] * 20, 200, SamplingParams(seed=i), policy, ["js"], True) for i in range(4)]
    async with loaded(folders["llama"], "float32", options=options) as pair:
        alone = [await run(pair, job) for job in jobs]
        preempt, preempted = core(pair).scheduler._preempt_request, []
        core(pair).scheduler._preempt_request = lambda *a, **k: (preempted.append(a), preempt(*a, **k))[1]
        same(await asyncio.gather(*(run(pair, job) for job in jobs)), alone)
        assert preempted


async def test_a_cancelled_request_frees_the_engine_and_usage_counts_its_passes(folders: Folders) -> None:
    job = SwitchGenerate([3, 4, 5], 40, GREEDY, {"kind": "always_a"}, ignore_eos=True)
    async with loaded(folders["llama"], "float32", options=ONE) as pair:
        frames = [frame async for frame in answer(pair, job)]
        assert [len(frame.ids) for frame in frames if isinstance(frame, Tokens)] == [4] * 10
        assert isinstance(frames[-1], Done)
        usage = frames[-1].usage
        # One pass of both over the prompt; A drafts 4 at its end, and 4 at the end of each round but the last.
        assert (usage.a_forwards, usage.b_forwards, usage.rounds) == (40, 11, 10)
        assert (usage.drafted, usage.accepted) == (40, 40)
        async with aclosing(answer(pair, job)) as stream:  # type: ignore[type-var]
            await anext(stream)
        async with asyncio.timeout(5):
            while core(pair).scheduler.has_unfinished_requests():
                await asyncio.sleep(0.01)
        worker = core(pair).model_executor.driver_worker.worker
        assert worker._onoff_kept == worker._onoff_running == {}


def test_what_one_engine_cannot_hold_is_named(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    for options, message in (
        ({"engines": "one", "engine_a": {"seed": 1}}, "engine_a and engine_b are for two engines"),
        ({"engines": "one", "engine": {"tensor_parallel_size": 2}}, "not been tried with tensor parallelism"),
        ({"engines": "three"}, "three"),
        ({**ONE, "draft_tokens": 0}, "draft_tokens"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_pair(spec(a, b, options=options))
    narrow = tiny.write_model(tmp_path, "llama", 1, head_dim=32, num_key_value_heads=1)
    assert AutoModelForCausalLM.from_pretrained(narrow).config.num_key_value_heads == 1
    with pytest.raises(UnsupportedModel, match="mixes full_attention and sliding_attention"):
        load_pair(spec(*folders["gemma2"], options=ONE))
    with pytest.raises(UnsupportedModel, match=r"differs in .* cache: 2 x 32 and 1 x 32"):
        load_pair(spec(a, narrow, options=ONE))


def fields(job: SwitchGenerate) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def same(got: list[Run], want: list[Run]) -> None:
    for (ids, leads, values, reason), expected in zip(got, want, strict=True):
        assert (ids, leads, reason) == (expected[0], expected[1], expected[3])
        assert values == pytest.approx(expected[2], abs=1e-5)
