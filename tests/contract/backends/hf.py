"""The suite's pairs on Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from tests.contract import tiny

NAME = "hf"
ARCHITECTURES: dict[str, dict[str, Any]] = {name: {} for name in tiny.ARCHITECTURES}
#: nats a log-probability may be off from a plain forward pass in float32.
TOLERANCE = 1e-5
#: dtypes in which lookahead is lock-step, and how far apart the divergences of the two may be.
EXACT = {"float64": 1e-7, "float32": 1e-5}
