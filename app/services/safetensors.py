"""The safetensors layout: eight bytes of header length, a JSON header, the tensors' bytes.

Written by hand because bfloat16 arrives as bit patterns, which numpy has no dtype for, and so that the parts of a
tensor need not be joined in memory first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/vnd.safetensors"

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
}
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Little-endian, C-contiguous, in consecutive parts."""

    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[bytes]


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> list[bytes]:
    """The file in parts. Metadata values are JSON in strings, since the format holds only strings."""
    # Wide types first: then every tensor is aligned, as torch wants it.
    ordered = sorted(tensors.items(), key=lambda entry: -_SIZES[entry[1].dtype])
    parts: list[bytes] = []
    for _, tensor in ordered:
        size = sum(map(len, tensor.parts))
        if size != size_of(tensor.dtype, tensor.shape):
            raise ValueError(f"{size} bytes are no {tensor.dtype} tensor of shape {tensor.shape}")
        parts.extend(tensor.parts)
    return [header([(name, tensor.dtype, tensor.shape) for name, tensor in ordered], metadata), *parts]


def header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, Any]) -> bytes:
    """The beginning of a file whose tensors (name, dtype, shape) follow in this order; a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in metadata.items()}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + size_of(dtype, shape)
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _SIZES[dtype]
