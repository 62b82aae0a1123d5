"""What must be the same on every backend: the texts that seeds write."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.contract.conftest import Case, spec
from tests.contract.test_backend import tokens
from tests.contract.test_lookahead import cases, loaded, run, typical_divergences
from workers.backends import load_pair
from workers.wire import Generate, SamplingParams


async def writes_as_transformers(folders: tuple[Path, Path]) -> None:
    """Plain and switched texts, leads and endings in float32 are those of the Hugging Face backend."""
    plain = [
        Generate(side, [5, 9, 11 + i], 60, SamplingParams(seed=i, temperature=t, top_k=k, top_p=p, min_p=m))  # type: ignore[arg-type]
        for side in "ab"
        for i, (t, k, p, m) in enumerate([(1.0, 0, 1.0, 0.0), (0.7, 10, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1, 0, 1, 0.1)])
    ]
    async with loaded(folders, "float32", sequences=16) as pair:
        switched = cases(pair, await typical_divergences(pair), 12, seed=5)
        got = [await tokens(Case(pair, None, None), job) for job in plain]
        runs = [await run(pair, job) for job in switched]
    reference = load_pair(msgspec.structs.replace(spec(*folders), backend="hf"))
    want = [await tokens(Case(reference, None, None), job) for job in plain]
    wanted = [await run(reference, job) for job in switched]
    await reference.close()
    assert [result[0] for result in got] == [result[0] for result in want]
    assert [result[2].finish_reason for result in got] == [result[2].finish_reason for result in want]
    assert [(ids, leads, reason) for ids, leads, _, reason in runs] == [(i, x, r) for i, x, _, r in wanted]
