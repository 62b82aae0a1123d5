from __future__ import annotations

from tests.contract.conftest import folders, llama

__all__ = ["folders", "llama"]
