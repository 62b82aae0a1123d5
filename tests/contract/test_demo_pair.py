"""The shipped pair through the Hugging Face backend, against plain transformers and scipy in float64."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contract.conftest import spec
from tests.contract.test_backend import gap, joined
from workers.backends import load_pair
from workers.backends.base import Pair
from workers.host import answer
from workers.wire import Compare, Rows, SamplingParams, Score, SwitchGenerate, Tokens, Values

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    loaded = load_pair(spec(DEMO / "base", DEMO / "rl"))
    yield loaded
    await loaded.close()


def problems(count: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and solutions."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    lines = (DEMO / "problems.jsonl").read_text().splitlines()[:count]
    return [
        (tokenizer(item["prompt"]).input_ids, tokenizer(item["solution"], add_special_tokens=False).input_ids)
        for item in map(json.loads, lines)
    ]


def plain(side: str, prompt: list[int], solution: list[int]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(DEMO / side, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([prompt + solution])).logits[0, len(prompt) - 1 : -1]


async def test_distributions_and_divergences_are_exact(pair: Pair) -> None:
    vocab_size = pair.info.a.vocab_size
    for prompt, solution in problems(5):
        ids, start = prompt + solution, len(prompt)
        a, b = (plain(side, prompt, solution)[:, :vocab_size].log_softmax(-1) for side in ("base", "rl"))
        rows = [f async for f in answer(pair, Score("b", ids, start)) if isinstance(f, Rows)]
        got_b = joined([f.values for f in rows])
        assert gap(np.exp(got_b), b.exp()) < 1e-6
        # Log-probabilities of -30 have steps of 2e-6 in float32: a few of them on top of 1e-5.
        np.testing.assert_allclose(got_b, b, rtol=1e-6, atol=1e-5)

        names = ["js", "kl_ab", "kl_ba", "tv"]
        frames = [f async for f in answer(pair, Compare(ids, start, ids, start, names)) if isinstance(f, Values)]
        got = {name: joined([f.measures[name] for f in frames]) for name in names}
        p, q = (torch.softmax(x.double(), -1).numpy() for x in (a, b))
        assert gap(got["js"], [jensenshannon(x, y) ** 2 for x, y in zip(p, q, strict=True)]) < 1e-6
        # Unbounded, and moved as far as log-probabilities are: by the processor, more than by us.
        np.testing.assert_allclose(got["kl_ab"], rel_entr(p, q).sum(-1), rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(got["kl_ba"], rel_entr(q, p).sum(-1), rtol=2e-5, atol=2e-6)
        assert gap(got["tv"], abs(p - q).sum(-1) / 2) < 1e-6


async def test_two_hundred_equal_requests_write_one_text(pair: Pair) -> None:
    prompt, _ = problems(1)[0]
    job = SwitchGenerate(prompt, 100, SamplingParams(seed=7), {"kind": "divergence", "on": 0.1})

    async def text() -> tuple[int, ...]:
        return tuple([i async for f in answer(pair, job) if isinstance(f, Tokens) for i in f.ids])

    assert len(set(await asyncio.gather(*(text() for _ in range(200))))) == 1


@pytest.mark.parametrize(
    "policy", [{"kind": "divergence", "on": 0.1, "off": 0.02, "min_dwell": 2}, {"kind": "always_b"}]
)
async def test_lookahead_equals_lock_step(pair: Pair, policy: dict[str, Any]) -> None:
    async def run(prompt: list[int], seed: int, lookahead: int | None) -> tuple[list[int], str, Any]:
        ids: list[int] = []
        leads, values = "", []
        params = SamplingParams(seed=seed, temperature=(1.0, 0.7, 0.0)[seed % 3])
        async for frame in answer(pair, SwitchGenerate(prompt, 90, params, policy, lookahead=lookahead)):
            if isinstance(frame, Tokens):
                ids += frame.ids
                leads += frame.leads
                values += frame.values["js"]
        return ids, leads, values

    for seed, (prompt, _) in enumerate(problems(12)):
        ids, leads, values = await run(prompt, seed, 0)
        for lookahead in (None, 1, 5, 16):
            other = await run(prompt, seed, lookahead)
            assert other[:2] == (ids, leads)
            # Float32 passes of other shapes round log-probabilities otherwise: a few steps of 2e-6 near -30.
            np.testing.assert_allclose(other[2], values, rtol=1e-5, atol=1e-6)
