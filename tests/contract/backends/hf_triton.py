"""The suite's pairs on transformers, their rows measured and drawn from by the GPU's loops, interpreted.

A pytest plugin (`-p tests.contract.backends.hf_triton`): rows on the processor are taken for rows on a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.contract.backends.hf import ARCHITECTURES, EXACT, NAME, TOLERANCE
from workers import device

__all__ = ["ARCHITECTURES", "EXACT", "NAME", "TOLERANCE"]


def reaches(rows: Any) -> bool:
    return getattr(rows, "is_cpu", False) and rows.stride(-1) == 1 and rows.dtype.itemsize <= 4


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.exit("Triton's interpreter is asked for by TRITON_INTERPRET=1, before Triton is imported", 2)
    from workers import triton_kernels

    device.reaches = reaches
    triton_kernels.PART = triton_kernels.BLOCK  # the suite's rows are narrow, and the interpreter runs empty lanes too
