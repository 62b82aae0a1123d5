"""An entry as bytes that another process, machine or version may read: whole and its own, or not at all.

    magic, version, bytes of the description                                    4 + 1 + 2 bytes
    the key it was written for                                                  32 bytes
    CRC-32 of all but itself                                                    4 bytes
    the description: [name, dtype, shape, bytes of each plane] of each array    msgpack
    the arrays

An array lies there as it is, or in planes: all first bytes, all second bytes, ... Of floats the last plane, sign and
exponent, shrinks to a few hundredths and the others hardly at all, so each is a zstd frame with its checksum where that
pays, and else is stored and read without a copy. Small arrays are never worth it. Little-endian throughout. Nothing is
ever unpickled.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Sequence
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
_HEADER: Final = struct.Struct("<4sBH32s")
_CRC: Final = struct.Struct("<I")
_START: Final = _HEADER.size + _CRC.size
#: Planes smaller than this are not compressed, and larger ones only to less than this share.
_WORTH_BYTES: Final = 4096
_WORTH_SHARE: Final = 0.9
_DTYPES: Final = frozenset({"float32", "float64", "int32", "int64", "uint8"})
_WRITE: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}
_READ: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 24}

#: Planes of an array that lies there as it is: none.
_Described = tuple[str, str, tuple[int, ...], tuple[int, ...]]
_descriptions = msgspec.msgpack.Decoder(list[_Described])


class Corrupt(Exception):
    """These bytes are not what was written under this key."""


def encode(key: bytes, entry: Entry) -> bytes | None:
    """None for what is too large to be stored."""
    if sum(array.nbytes for array in entry.values()) > _MAX_RAW:
        return None
    described: list[_Described] = []
    body: list[bytes] = []
    for name, array in entry.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"{array.dtype} arrays are not stored")
        planes = _planes(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
        described.append((name, array.dtype.name, array.shape, tuple(map(len, planes)) if len(planes) > 1 else ()))
        body += planes
    description = msgspec.msgpack.encode(described)
    head = _HEADER.pack(_MAGIC, FORMAT, len(description), key)
    rest = b"".join([description, *body])
    value = b"".join([head, _CRC.pack(zlib.crc32(rest, zlib.crc32(head))), rest])
    return value if len(value) <= MAX_VALUE else None


def decode(key: bytes, value: bytes) -> Entry:
    """The entry written under `key`, its arrays read-only. Raises Corrupt, before more than a few MB are made of it."""
    if not _START <= len(value) <= MAX_VALUE:
        raise Corrupt
    view = memoryview(value)
    magic, version, described, own = _HEADER.unpack_from(view)
    if (magic, version, own) != (_MAGIC, FORMAT, key) or len(value) < _START + described:
        raise Corrupt
    if _CRC.unpack_from(view, _HEADER.size) != (zlib.crc32(view[_START:], zlib.crc32(view[: _HEADER.size])),):
        raise Corrupt
    try:
        description = _descriptions.decode(view[_START : _START + described])
    except msgspec.MsgspecError as error:
        raise Corrupt from error
    return _arrays(description, view[_START + described :])


def _arrays(description: list[_Described], data: memoryview) -> Entry:
    entry: dict[str, npt.NDArray[Any]] = {}
    left = _MAX_RAW
    for name, kind, shape, planes in description:
        if kind not in _DTYPES or any(n < 0 for n in shape) or any(n < 0 for n in planes):
            raise Corrupt
        dtype = np.dtype(kind).newbyteorder("<")
        size = math.prod(shape) * dtype.itemsize
        stored = sum(planes) if planes else size
        left -= size
        if stored > len(data) or left < 0 or len(planes) not in (0, dtype.itemsize):
            raise Corrupt
        mine, data = data[:stored], data[stored:]
        array = _joined(mine, planes, size, dtype) if planes else np.frombuffer(mine, dtype)
        entry[name] = array.reshape(shape)
    if data:
        raise Corrupt
    return entry


def _planes(array: npt.NDArray[Any]) -> list[bytes]:
    """The array's byte planes, compressed where it pays; where it does for none the array as it is, alone."""
    if array.size < _WORTH_BYTES or array.dtype.itemsize == 1:
        return [array.tobytes()]
    columns = array.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)
    planes = [columns[:, index].tobytes() for index in range(array.dtype.itemsize)]
    packed = [zstd.compress(plane, options=_WRITE) for plane in planes]
    worth = [len(small) < _WORTH_SHARE * len(plane) for small, plane in zip(packed, planes, strict=True)]
    if not any(worth):
        return [array.tobytes()]
    return [small if pays else plane for small, plane, pays in zip(packed, planes, worth, strict=True)]


def _joined(data: memoryview, lengths: Sequence[int], size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    count = size // dtype.itemsize
    columns = np.empty((count, dtype.itemsize), np.uint8)
    for index, length in enumerate(lengths):
        plane, data = data[:length], data[length:]
        columns[:, index] = np.frombuffer(plane if length == count else _inflated(plane, count), np.uint8)
    array = columns.reshape(-1).view(dtype)
    array.flags.writeable = False
    return array


def _inflated(frame: memoryview, size: int) -> bytes:
    try:
        if zstd.get_frame_info(frame).decompressed_size != size:
            raise Corrupt
        reader = zstd.ZstdDecompressor(options=_READ)
        data = reader.decompress(frame, max_length=size + 1)
    except zstd.ZstdError as error:
        raise Corrupt from error
    if not reader.eof or reader.unused_data or len(data) != size:
        raise Corrupt
    return data
