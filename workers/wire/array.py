"""Arrays as raw bytes with dtype and shape."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt


class Array(msgspec.Struct, frozen=True):
    """A C-contiguous little-endian array. bfloat16 travels as uint16 bit patterns under its own name."""

    dtype: Literal["float64", "float32", "float16", "bfloat16", "int64", "int32"]
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[Any], dtype: str | None = None) -> Array:
        return cls(dtype or array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())  # type: ignore[arg-type]

    def numpy(self) -> npt.NDArray[Any]:
        """A read-only view; bfloat16 as uint16. Raises ValueError when bytes and shape disagree."""
        dtype = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        if any(n < 0 for n in self.shape) or len(self.data) != math.prod(self.shape) * dtype.itemsize:
            raise ValueError(f"{len(self.data)} bytes are no {self.dtype} array of shape {self.shape}")
        return np.frombuffer(self.data, dtype=dtype).reshape(self.shape)
