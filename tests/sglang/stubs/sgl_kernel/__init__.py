"""Import-only: SGLang's compiled kernels. Its torch_native attention and pytorch sampling do without."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} was called, and there is no sgl_kernel")

    missing.__name__ = name
    return missing
