"""Binary answers: a safetensors body as numpy arrays, in memory or mapped from a file."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from rl_onoff.errors import ServiceError

_DTYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
}


@dataclass(frozen=True, slots=True)
class FullDistributions:
    """The rows of one item: `values` `[T, V]`, or the best `[T, k]` of each with their `ids` `[T, k]`.

    `token_ids` `[T]` are the scored tokens and `token_logprobs` `[T]` their log-probabilities, where the answer holds
    them or they can be read off whole rows; `entropy` `[T]` is that of each row, `tail` `[T]` the probability of all
    tokens that are not in its `ids`. `metadata` is the answer's (model, kind, temperature, `provenance`, ...). Of rows
    mapped from a file in bfloat16, which numpy does not know, `values` are the bit patterns: `float32(values[i:j])`
    widens what is needed of them.
    """

    token_ids: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    ids: npt.NDArray[np.int64] | None = None
    token_logprobs: npt.NDArray[Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    entropy: npt.NDArray[Any] | None = None
    tail: npt.NDArray[Any] | None = None


def read_distributions(body: bytes) -> list[FullDistributions]:
    """The items of a binary `/distributions` answer, in the request's order."""
    try:
        tensors = {name: _array(tensor) for name, tensor in deserialize(body)}  # type: ignore[no-untyped-call]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ServiceError(f"the answer is no safetensors file this version can read: {error}") from error
    metadata = read_metadata(body)
    count = sum(name.endswith(".token_ids") for name in tensors)
    try:
        return [_item(tensors, f"{index}.", metadata) for index in range(count)]
    except KeyError as error:
        raise ServiceError(f"the answer lacks the tensor {error}") from error


def map_distributions(path: Path) -> list[FullDistributions]:
    """The items of a binary answer in a file, mapped rather than read: only what is looked at comes into memory."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            head = file.read(length)
            size = path.stat().st_size
        entries: dict[str, Any] = json.loads(head)
        raw = entries.pop("__metadata__", {})
        tensors = {name: _mapped(path, size, 8 + length, entry) for name, entry in entries.items()}
        metadata = {name: _decoded(value) for name, value in raw.items()}
        count = sum(name.endswith(".token_ids") for name in tensors)
        return [_item(tensors, f"{index}.", metadata) for index in range(count)]
    except (struct.error, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ServiceError(f"{path} is no safetensors file this version can read: {error}") from error


def float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Values of any dtype an answer has, in float32; uint16 are bit patterns of bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _mapped(path: Path, size: int, base: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize or base + end > size:
        raise ValueError("a tensor's bytes are not those of its shape, or not all there")
    if end == begin:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", base + begin, shape)


def read_metadata(body: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file, each value decoded where it is JSON."""
    (length,) = struct.unpack_from("<Q", body)
    raw: dict[str, str] = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    return {name: _decoded(value) for name, value in raw.items()}


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _array(tensor: dict[str, Any]) -> npt.NDArray[Any]:
    array = np.frombuffer(tensor["data"], dtype=_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":  # the upper half of a float32, which numpy knows
        return float32(array)
    return array


def _item(tensors: dict[str, npt.NDArray[Any]], prefix: str, metadata: dict[str, Any]) -> FullDistributions:
    token_ids, values = tensors[prefix + "token_ids"], tensors[prefix + "values"]
    ids = tensors.get(prefix + "ids")
    token_logprobs = tensors.get(prefix + "token_logprobs")
    if token_logprobs is None and ids is None and metadata.get("kind") == "logprobs":
        token_logprobs = np.take_along_axis(values, token_ids[:, None].astype(np.int64), axis=-1)[:, 0]
    return FullDistributions(
        token_ids,
        values,
        ids,
        token_logprobs,
        metadata,
        tensors.get(prefix + "entropy"),
        tensors.get(prefix + "tail"),
    )
