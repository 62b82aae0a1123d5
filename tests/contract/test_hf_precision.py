"""Lookahead and lock-step in bfloat16 on the Hugging Face backend, whose kernels round by the shape of a pass."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec

from tests.contract import tiny
from tests.contract.test_lookahead import Folders, cases, equal, loaded, run, typical_divergences
from workers.backends.base import Pair
from workers.host import answer
from workers.wire import Done, SamplingParams, SwitchGenerate


async def test_strict_equals_lock_step_in_bfloat16(folders: Folders) -> None:
    async with loaded(folders["llama"], "bfloat16", sequences=8, options={"strict": True}) as pair:
        await equal(pair, cases(pair, await typical_divergences(pair), 24, seed=3), 1e-6)


async def test_strict_rows_do_not_hang_on_how_a_prompt_was_computed(tmp_path: Path) -> None:
    """At once, or after what another request left of it; beside others, longer or shorter, beyond what a kernel of
    attention goes over at a time."""
    fields = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 6}
    wide = tiny.write_pair(tmp_path, "llama", **fields, max_position_embeddings=2048)
    rng = random.Random(5)
    policy = {"kind": "divergence", "on": 0.2}
    jobs = [
        SwitchGenerate(
            [rng.randrange(2, 90) for _ in range(length)],
            30,
            SamplingParams(seed=length),
            policy,
            measures=["js"],
            ignore_eos=True,
            lookahead=lookahead,
        )
        for length, lookahead in ((240, 0), (250, None), (420, None), (505, 4), (600, None))
    ]
    found = []
    for warm, beside in ((False, False), (True, False), (True, True)):
        async with loaded(wide, "bfloat16", sequences=5, max_len=1024, options={"strict": True}) as pair:
            assert set(pair.info.noise.values()) == {0.0}
            if warm:
                for job in jobs:
                    await run(pair, msgspec.structs.replace(job, ids=job.ids[: len(job.ids) - 99], max_tokens=1))
            if beside:
                found.append(await asyncio.gather(*(run(pair, job) for job in jobs)))
            else:
                found.append([await run(pair, job) for job in jobs])
    assert found[0] == found[1] == found[2]


async def doubts(pair: Pair, job: SwitchGenerate) -> int:
    last = [frame async for frame in answer(pair, job)][-1]
    assert isinstance(last, Done)
    return last.usage.within_noise


async def test_what_differs_in_bfloat16_was_within_the_noise(tmp_path: Path) -> None:
    # Wide enough for kernels of one token and of many to round differently. Whether a decision turns depends on the
    # machine and its threads: where one does, it must have been counted.
    wide = tiny.write_pair(tmp_path, "llama", hidden_size=512, intermediate_size=1024, head_dim=128)
    async with loaded(wide, "bfloat16", sequences=8) as pair:
        for job in cases(pair, await typical_divergences(pair), 30, seed=4):
            lockstep = msgspec.structs.replace(job, lookahead=0)
            if (await run(pair, job))[:2] != (await run(pair, lockstep))[:2]:
                assert await doubts(pair, job) + await doubts(pair, lockstep) > 0
    async with loaded(wide, "bfloat16", sequences=8, options={"strict": True}) as pair:
        await equal(pair, cases(pair, await typical_divergences(pair), 30, seed=4), 1e-6)


async def test_strict_has_no_noise(folders: Folders) -> None:
    async with loaded(folders["llama"], "bfloat16", options={"strict": True}) as pair:
        assert set(pair.info.noise.values()) == {0.0}
        job = SwitchGenerate([3, 4, 5], 40, SamplingParams(seed=1), {"kind": "divergence", "on": 0.01}, ignore_eos=True)
        assert await doubts(pair, job) == 0
