"""The pairs of the contract suite, on vLLM, each test with engines of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.backends import vllm
from tests.contract.conftest import folders, llama

__all__ = ["folders", "llama"]


@pytest.fixture(autouse=True)
def _own_engines() -> Iterator[None]:
    vllm.release()
    yield
    vllm.release()
