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

_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Little-endian, C-contiguous, in consecutive parts."""

    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[bytes]


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> list[bytes]:
    """The file in parts. Metadata values are JSON in strings, since the format holds only strings."""
    # Wide types first, and the header padded to 8 bytes: then every tensor is aligned, as torch wants it.
    ordered = sorted(tensors.items(), key=lambda entry: -_SIZES[entry[1].dtype])
    header: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in metadata.items()}}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in ordered:
        size = sum(map(len, tensor.parts))
        if size != math.prod(tensor.shape) * _SIZES[tensor.dtype]:
            raise ValueError(f"{size} bytes are no {tensor.dtype} tensor of shape {tensor.shape}")
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
        parts.extend(tensor.parts)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *parts]
