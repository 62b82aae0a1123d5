"""Pairs every backend's suite runs on."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract import tiny
from workers.backends import load_pair
from workers.backends.base import Pair
from workers.wire import ModelSpec, WorkerSpec

#: The backend under test: a module of `tests.contract.backends`, named by the environment.
BACKEND: Any = importlib.import_module(f"tests.contract.backends.{os.environ.get('RL_ONOFF_TEST_BACKEND', 'hf')}")


@dataclass(frozen=True)
class Case:
    """A loaded pair and the same models in plain transformers, with the shared vocabulary."""

    pair: Pair
    plain_a: Any
    plain_b: Any

    @property
    def vocab_size(self) -> int:
        return self.pair.info.a.vocab_size

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = torch.randint(2, self.vocab_size - 2, (length,), generator=generator).tolist()
        return ids

    def plain_rows(self, model: Any, ids: list[int]) -> torch.Tensor:
        """Rows 1..len(ids) by one forward pass without any cache, cut before the softmax."""
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, : self.vocab_size]
        rows: torch.Tensor = logits.float().log_softmax(-1)
        return rows

    def plain_greedy(self, model: Any, ids: list[int], count: int) -> list[int]:
        padding = list(range(self.vocab_size, tiny.COLUMNS))
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            suppress_tokens=padding or None,
            pad_token_id=0,
            eos_token_id=None,
        )
        tokens: list[int] = out[0, len(ids) :].tolist()
        return tokens


def spec(a: Path, b: Path, **fields: Any) -> WorkerSpec:
    side = {"device": "cpu"}
    return WorkerSpec("p", BACKEND.NAME, "", ModelSpec("a", str(a), **side), ModelSpec("b", str(b), **side), **fields)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    changes: dict[str, dict[str, Any]] = BACKEND.ARCHITECTURES
    return {name: tiny.write_pair(tmp_path_factory.mktemp(name), name, **changes[name]) for name in changes}


@pytest.fixture(params=BACKEND.ARCHITECTURES)
async def case(request: pytest.FixtureRequest, folders: dict[str, tuple[Path, Path]]) -> AsyncIterator[Case]:
    a, b = folders[request.param]
    pair = load_pair(spec(a, b, sequences=4))
    yield Case(pair, *(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (a, b)))
    await pair.close()


@pytest.fixture
async def llama(folders: dict[str, tuple[Path, Path]]) -> AsyncIterator[Case]:
    a, b = folders["llama"]
    pair = load_pair(spec(a, b, sequences=4))
    yield Case(pair, *(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (a, b)))
    await pair.close()
