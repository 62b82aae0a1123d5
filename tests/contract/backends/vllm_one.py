"""The suite's pairs on vLLM, each in one engine: A its draft model, B its target. A pytest plugin as `vllm` is."""

from __future__ import annotations

import msgspec
import pytest

from tests.contract.backends import vllm
from tests.contract.backends.vllm import EXACT, NAME, TOLERANCE, pytest_collection_modifyitems, pytest_sessionfinish
from workers.backends.vllm.pair import VLLMPair
from workers.wire import WorkerSpec

__all__ = ["EXACT", "NAME", "TOLERANCE", "pytest_collection_modifyitems", "pytest_sessionfinish"]

#: vLLM takes no draft model that mixes kinds of attention (tests/vllm/engine/test_single_engine.py).
ARCHITECTURES = {name: changes for name, changes in vllm.ARCHITECTURES.items() if name != "gemma2"}
#: Passes of B before the first draft is judged.
PROMPT_PASSES = 1


def load(spec: WorkerSpec) -> VLLMPair:
    return vllm.load(msgspec.structs.replace(spec, options={**spec.options, "engines": "one"}))


def pytest_configure(config: pytest.Config) -> None:
    vllm.pytest_configure(config)
    vllm.backend.load = load
