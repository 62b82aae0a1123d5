"""Lookahead and lock-step in bfloat16 on the Hugging Face backend, whose kernels round by the shape of a pass."""

from __future__ import annotations

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
