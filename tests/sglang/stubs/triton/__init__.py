"""Import-only: kernels can be defined, not launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from import_only import install


class _Kernel:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function
        self.__name__ = getattr(function, "__name__", "kernel")

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError(f"triton kernel {self.__name__} was launched, and there is no triton")

    __call__ = __getitem__


class _Config:
    def __init__(self, kwargs: Any = None, **_: Any) -> None:
        self.kwargs = kwargs or {}


def _jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return _Kernel if function is None else _Kernel(function)


install(
    "triton",
    __version__="3.0.0",
    jit=_jit,
    Config=_Config,
    cdiv=lambda a, b: -(a // -b),
    next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
)
