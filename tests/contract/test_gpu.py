"""What a GPU alone can run: passes recorded as CUDA graphs, and the loops of `workers.device` as Triton compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.contract.test_lookahead import cases, equal, typical_divergences
from workers import comparison, device, kernels
from workers.backends import load_pair
from workers.comparison import Rows
from workers.wire import ModelSpec, WorkerSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

MEASURES = ["js", "kl_ab", "kl_ba", "tv", "hellinger", "renyi:2", "entropy_a", "delta_logp", "rank_of_b_in_a"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"graphs": False}])
async def test_lookahead_is_lock_step(
    folders: dict[str, tuple[Path, Path]], architecture: str, options: dict[str, Any]
) -> None:
    paths = zip("ab", folders[architecture], strict=True)
    sides = [ModelSpec(name, str(path), device="cuda", dtype="float32") for name, path in paths]
    pair = load_pair(WorkerSpec("p", "hf", "", *sides, sequences=8, options=options))
    try:
        assert not [warning for warning in pair.info.warnings if "recorded" in warning]
        await equal(pair, cases(pair, await typical_divergences(pair), 12, seed=5), 1e-4)
        graphs = pair.a._cache.graphs  # type: ignore[attr-defined]
        assert graphs is None if options else graphs.replays > 100
    finally:
        await pair.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_measures_are_the_processors(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ((8 * torch.randn(5, 40_000, generator=generator)).to(dtype) for _ in "ab")
    a[:, ::5] = -torch.inf
    assert device.works("cuda:0")
    tokens = [1, 2, 3, 4, 6]
    rows = [Rows.of(row.view(torch.uint16).numpy() if dtype == torch.bfloat16 else row.numpy()) for row in (a, b)]
    want = comparison.compare(*rows, MEASURES, tokens, temperature=temperature)
    found = device.compare(a.cuda(), b.cuda(), MEASURES, tokens, temperature=temperature)
    for name in MEASURES:
        np.testing.assert_allclose(found.measures[name], want.measures[name], rtol=3e-5, atol=3e-6, err_msg=name)


def test_draws_are_the_processors() -> None:
    rows = torch.randn(16, 40_000, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    temperatures, seeds, positions = [0.3, 1.0, 1.5, 2.0] * 4, list(range(16)), list(range(100, 116))
    tokens, _ = device.draw(rows.cuda(), temperatures, seeds, positions)
    for i, token in enumerate(tokens):
        drawn, _ = kernels.draw_rows(rows[i : i + 1].numpy(), temperatures[i], seeds[i], np.array([positions[i]]))
        assert drawn[0] == token
