"""The suite's pairs on vLLM, each in one engine: A its draft model, B its target. A pytest plugin as `vllm` is."""

from __future__ import annotations

import msgspec
import pytest

from tests.contract.backends import vllm
from tests.contract.backends.vllm import (
    ARCHITECTURES,
    EXACT,
    NAME,
    TOLERANCE,
    pytest_collection_modifyitems,
    pytest_sessionfinish,
)
from workers.backends.vllm.pair import VLLMPair
from workers.wire import WorkerSpec

__all__ = ["ARCHITECTURES", "EXACT", "NAME", "TOLERANCE", "pytest_collection_modifyitems", "pytest_sessionfinish"]


def load(spec: WorkerSpec) -> VLLMPair:
    return vllm.load(msgspec.structs.replace(spec, options={**spec.options, "engines": "one"}))


def pytest_configure(config: pytest.Config) -> None:
    vllm.pytest_configure(config)
    vllm.backend.load = load
