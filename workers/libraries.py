"""Versions of what computes in this worker: another release of any of them may round otherwise."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

#: Their local parts (`+cpu`, `+cu126`) name the build.
NUMERIC: Final = (
    "bitsandbytes",
    "flash-attn",
    "flashinfer-python",
    "numba",
    "numpy",
    "peft",
    "sgl-kernel",
    "sglang",
    "torch",
    "transformers",
    "triton",
    "vllm",
)


def versions() -> dict[str, str]:
    """Of those that are installed, whether this pair needs them or not."""
    found: dict[str, str] = {}
    for name in NUMERIC:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
