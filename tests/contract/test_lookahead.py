"""Lookahead equals lock-step: token for token, lead for lead, whatever the policy, the sampling and the neighbours.

In float64 without exception. In float32 these deterministic cases show no difference either; bfloat16, where kernels
round a pass of one token otherwise than one of many, is the business of each backend's own tests.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rl_onoff.kinds import parse_policy
from tests.contract.conftest import BACKEND
from workers.backends import load_pair
from workers.backends.base import Pair
from workers.host import answer
from workers.wire import Done, ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

Folders = dict[str, tuple[Path, Path]]
Run = tuple[list[int], str, list[float], str | None]
FINEST = next(iter(BACKEND.EXACT))


@asynccontextmanager
async def loaded(folders: tuple[Path, Path], dtype: str, **fields: Any) -> AsyncIterator[Pair]:
    sides = [ModelSpec(name, str(path), device="cpu", dtype=dtype) for name, path in zip("ab", folders, strict=True)]
    pair = load_pair(WorkerSpec("p", BACKEND.NAME, "", *sides, **fields))
    try:
        yield pair
    finally:
        await pair.close()


async def run(pair: Pair, job: SwitchGenerate) -> Run:
    ids: list[int] = []
    leads, values, reason = "", [], None
    async for frame in answer(pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
            values += frame.values["js"]
        elif isinstance(frame, Done):
            reason = frame.finish_reason
    return ids, leads, values, reason


async def typical_divergences(pair: Pair) -> list[float]:
    job = SwitchGenerate([5, 6, 7], 60, SamplingParams(seed=1), {"kind": "always_a"}, ignore_eos=True)
    return sorted((await run(pair, job))[2])


#: Their thresholds are set to the median of what the pair shows (`parting`).
OF_SIGNALS: list[dict[str, Any]] = [
    {"kind": "entropy"},
    {"kind": "top_prob"},
    {"kind": "rank"},
    {"kind": "delta_logp", "of": "a"},
    {"kind": "delta_logp", "of": "b", "min_dwell": 2},
    {"kind": "target_floor"},
    {"kind": "typical", "delta": 0.95},
    {"kind": "divergence", "measure": "kl_ba"},
    {"kind": "divergence", "measure": "renyi:0.5"},
    {"kind": "divergence", "measure": "tv", "max_b_fraction": 0.5},
]


async def parting(pair: Pair, policy: dict[str, Any]) -> dict[str, Any]:
    """The policy with a threshold that about half of the tokens exceed."""
    watched = parse_policy(policy | {"on": 1.0}).watched
    job = SwitchGenerate([5, 6, 7], 60, SamplingParams(seed=1), {"kind": "always_a"}, measures=[watched])
    frames = [frame async for frame in answer(pair, msgspec.structs.replace(job, ignore_eos=True))]
    values = [value for frame in frames if isinstance(frame, Tokens) for value in frame.values[watched]]
    sign = -1.0 if watched == "delta_logp_a" else 1.0
    return policy | {"on": sign * float(np.median(values))}


def cases(
    pair: Pair, levels: list[float], count: int, seed: int, policies: list[dict[str, Any]] | None = None
) -> list[SwitchGenerate]:
    """Random requests, of these policies by turns or with thresholds of divergence at the levels this pair has."""
    rng = random.Random(seed)

    def level(*quantiles: float) -> float:
        return levels[int(rng.choice(quantiles) * (len(levels) - 1))]

    def policy() -> dict[str, Any]:
        kind = rng.choice(["divergence"] * 6 + ["random", "schedule", "always_a", "always_b"])
        if kind == "random":
            return {"kind": kind, "rate": rng.choice([0.05, 0.5])}
        if kind == "schedule":
            return {"kind": kind, "positions": sorted(rng.sample(range(40), 8))}
        if kind != "divergence":
            return {"kind": kind}
        on = rng.choice([0.0, math.log(2), *(level(0.3, 0.6, 0.8, 0.95) for _ in range(6))])
        return {
            "kind": kind,
            "on": on,
            "off": on * rng.choice([0.3, 0.7, 1.0]),
            "min_dwell": rng.choice([1, 1, 2, 5]),
            "start": rng.choice("aab"),
            "max_b_fraction": rng.choice([None, None, 0.2, 0.5]),
        }

    def sampling() -> SamplingParams:
        return SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_k=rng.choice([0, 0, 10]),
            top_p=rng.choice([1.0, 1.0, 0.9]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            seed=rng.getrandbits(53),
        )

    vocab_size = pair.info.a.vocab_size
    return [
        SwitchGenerate(
            [rng.randrange(2, vocab_size) for _ in range(rng.randrange(1, 40))],
            rng.randrange(1, 50),
            sampling(),
            policies[i % len(policies)] if policies else policy(),
            measures=["js"],
            ignore_eos=rng.random() < 0.5,
            lookahead=rng.choice([None, 1, 2, 3, 5, 8, 16]),
            swapped=rng.random() < 0.2,
        )
        for i in range(count)
    ]


async def equal(pair: Pair, jobs: list[SwitchGenerate], tolerance: float) -> None:
    """Lock-step one by one, then lookahead all at once: joining and leaving, and some neighbours cancelled midway."""
    wanted = [await run(pair, msgspec.structs.replace(job, lookahead=0)) for job in jobs]

    async def later(job: SwitchGenerate, delay: float) -> Run:
        await asyncio.sleep(delay)
        return await run(pair, job)

    rng = random.Random(len(jobs))
    doomed = [asyncio.create_task(later(job, 0.01 * i)) for i, job in enumerate(jobs[::3])]
    tasks = [asyncio.create_task(later(job, rng.random() * 0.3)) for job in jobs]
    await asyncio.sleep(0.1)
    for task in doomed:
        task.cancel()
    for task in doomed:
        with suppress(asyncio.CancelledError):
            await task
    for job, want, task in zip(jobs, wanted, tasks, strict=True):
        got = await task
        assert (got[0], got[1], got[3]) == (want[0], want[1], want[3]), job
        np.testing.assert_allclose(got[2], want[2], atol=tolerance)


@pytest.mark.parametrize("architecture", BACKEND.ARCHITECTURES)
@pytest.mark.parametrize("dtype", BACKEND.EXACT)
async def test_lookahead_equals_lock_step(architecture: str, dtype: str, folders: Folders) -> None:
    async with loaded(folders[architecture], dtype, sequences=16) as pair:
        jobs = cases(pair, await typical_divergences(pair), 24, seed=len(architecture))
        assert {job.policy["kind"] for job in jobs} >= {"divergence", "random"}
        await equal(pair, jobs, BACKEND.EXACT[dtype])


async def test_whatever_signal_a_policy_reads(folders: Folders) -> None:
    async with loaded(folders["llama"], FINEST, sequences=16) as pair:
        jobs = cases(pair, [], 30, 11, [await parting(pair, policy) for policy in OF_SIGNALS])
        jobs = [msgspec.structs.replace(job, max_tokens=30, ignore_eos=True) for job in jobs]
        leads = [(await run(pair, job))[1] for job in jobs[: len(OF_SIGNALS)]]
        assert sum(len({*lead}) == 2 for lead in leads) > len(leads) // 2  # they do switch
        await equal(pair, jobs, BACKEND.EXACT[FINEST])


async def test_models_that_end_at_tokens_of_their_own(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    own = shutil.copytree(b, tmp_path / "b")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((own / name).read_text())
        (own / name).write_text(json.dumps(settings | {"eos_token_id": [7, 9, 20, 33]}))
    rng = random.Random(1)
    policies = [{"kind": "always_a"}, {"kind": "always_b"}, {"kind": "random", "rate": 0.5}]
    async with loaded((a, own), FINEST, sequences=8) as pair:
        assert set(pair.info.b.eos_ids) - set(pair.info.a.eos_ids) >= {7, 9, 20, 33}
        jobs = [
            SwitchGenerate(
                [rng.randrange(2, 90)],
                rng.choice([1, 5, 60]),
                SamplingParams(seed=i),
                policies[i % 3],
                measures=["js"],
                swapped=i % 4 == 0,
                lookahead=rng.choice([None, 1, 4, 16]),
            )
            for i in range(24)
        ]
        reasons = [(await run(pair, job))[3] for job in jobs]
        assert {*reasons} == {"stop", "length"}
        await equal(pair, jobs, BACKEND.EXACT[FINEST])


async def test_usage_counts_what_was_drafted_and_kept(folders: Folders) -> None:
    async with loaded(folders["llama"], "float32") as pair:
        job = SwitchGenerate([3, 4, 5], 40, SamplingParams(seed=1), {"kind": "always_a"}, ignore_eos=True, lookahead=8)
        frames = [frame async for frame in answer(pair, job)]
    usage = frames[-1].usage  # type: ignore[union-attr]
    passes = 5 + getattr(BACKEND, "PROMPT_PASSES", 0)
    assert (usage.a_forwards, usage.b_forwards, usage.drafted, usage.accepted) == (40, passes, 40, 40)
    assert [len(f.ids) for f in frames[:-1] if isinstance(f, Tokens)] == [8] * 5
