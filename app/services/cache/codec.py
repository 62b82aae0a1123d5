"""An entry as bytes that another process, machine or version may read: whole and its own, or not at all.

    magic, version, bytes of the description, bytes of the arrays   4 + 1 + 2 + 4 bytes
    the key it was written for                                      32 bytes
    the description: [name, dtype, shape] of each array             msgpack
    CRC-32 of all that                                              4 bytes
    the arrays, byte-shuffled, as one zstd frame with its checksum

Shuffled (all first bytes, all second bytes, ...) floats compress by a quarter to a half; what does not compress costs
zstd one copy. Little-endian throughout. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from app.services.cache.entry import Entry
from app.services.cache.keys import FORMAT

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Larger values are neither written nor read: one beyond Redis's memory would empty it.
MAX_VALUE: Final = 4 << 20
_MAX_RAW: Final = 16 << 20
_MAGIC: Final = b"RLoo"
_HEADER: Final = struct.Struct("<4sBHI32s")
_CRC: Final = struct.Struct("<I")
_DTYPES: Final = frozenset({"float32", "float64", "int32", "int64", "uint8"})
_WRITE: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}
_READ: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 24}

_Described = list[tuple[str, str, tuple[int, ...]]]
_descriptions = msgspec.msgpack.Decoder(_Described)


class Corrupt(Exception):
    """These bytes are not what was written under this key."""


def encode(key: bytes, entry: Entry) -> bytes | None:
    """None for what is too large to be stored."""
    described = [(name, array.dtype.name, array.shape) for name, array in entry.items()]
    arrays = b"".join(_shuffled(array) for array in entry.values())
    if len(arrays) > _MAX_RAW:
        return None
    description = msgspec.msgpack.encode(described)
    head = _HEADER.pack(_MAGIC, FORMAT, len(description), len(arrays), key) + description
    value = head + _CRC.pack(zlib.crc32(head)) + zstd.compress(arrays, options=_WRITE)
    return value if len(value) <= MAX_VALUE else None


def decode(key: bytes, value: bytes) -> Entry:
    """The entry written under `key`, its arrays read-only. Raises Corrupt, before more than a few MB are made of it."""
    if len(value) > MAX_VALUE or len(value) < _HEADER.size + _CRC.size:
        raise Corrupt
    magic, version, described, raw, own = _HEADER.unpack_from(value)
    head = _HEADER.size + described
    if (magic, version, own) != (_MAGIC, FORMAT, key) or raw > _MAX_RAW or len(value) < head + _CRC.size:
        raise Corrupt
    if _CRC.unpack_from(value, head) != (zlib.crc32(memoryview(value)[:head]),):
        raise Corrupt
    try:
        description = _descriptions.decode(memoryview(value)[_HEADER.size : head])
    except msgspec.MsgspecError as error:
        raise Corrupt from error
    data = _inflated(memoryview(value)[head + _CRC.size :], raw)
    return _arrays(description, data)


def _inflated(frame: memoryview, size: int) -> memoryview:
    try:
        if zstd.get_frame_info(frame).decompressed_size != size:
            raise Corrupt
        reader = zstd.ZstdDecompressor(options=_READ)
        data = reader.decompress(frame, max_length=size + 1)
    except zstd.ZstdError as error:
        raise Corrupt from error
    if not reader.eof or reader.unused_data or len(data) != size:
        raise Corrupt
    return memoryview(data)


def _arrays(description: _Described, data: memoryview) -> Entry:
    entry: dict[str, npt.NDArray[Any]] = {}
    begin = 0
    for name, dtype, shape in description:
        if dtype not in _DTYPES or any(n < 0 for n in shape):
            raise Corrupt
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if begin + size > len(data):
            raise Corrupt
        entry[name] = _unshuffled(data[begin : begin + size], np.dtype(dtype)).reshape(shape)
        begin += size
    if begin != len(data):
        raise Corrupt
    return entry


def _shuffled(array: npt.NDArray[Any]) -> bytes:
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"{array.dtype} arrays are not stored")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    columns = little.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)
    return columns.T.tobytes()


def _unshuffled(data: memoryview, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    columns = np.empty((planes.shape[1], dtype.itemsize), np.uint8)
    for index, plane in enumerate(planes):
        columns[:, index] = plane
    array = columns.reshape(-1).view(dtype.newbyteorder("<"))
    array.flags.writeable = False
    return array
