"""These tests run Triton's interpreter on the processor: the GPU's loops, their arithmetic, not a GPU's rounding."""

from __future__ import annotations

import os

import pytest

from tests.contract.backends import hf_triton
from workers import device


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows on the processor are taken for rows on a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("these tests are of `make test-triton`: TRITON_INTERPRET=1 and Triton")
    monkeypatch.setattr(device, "reaches", hf_triton.reaches)
