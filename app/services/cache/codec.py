"""An entry as bytes that another process, machine or version may read: whole and its own, or not at all.

    magic, version, bytes of the description                                    4 + 1 + 2 bytes
    the key it was written for                                                  32 bytes
    XXH3-64 of all but itself                                                   8 bytes
    the description: [name, dtype, shape, bytes of each plane] of each array    msgpack
    the arrays

An array lies there as it is, or in planes: all low halves, then what is above them, byte by byte. Of floats the last
plane, sign and exponent, shrinks to a few hundredths and the others hardly at all, so each is a zstd frame with its
checksum where that pays, and else is stored as it is. Small arrays are never worth it. Little-endian throughout.
Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

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
_SUM: Final = struct.Struct("<Q")
_START: Final = _HEADER.size + _SUM.size
#: Bytes of the planes of one entry, by its size. Fewer planes are put together sooner.
_WIDTHS: Final = {4: (2, 1, 1), 8: (4, 2, 1, 1)}
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
    value = b"".join([head, _checksum(head, rest), rest])
    return value if len(value) <= MAX_VALUE else None


def decode(key: bytes, value: bytes) -> Entry:
    """The entry written under `key`, its arrays read-only. Raises Corrupt, before more than a few MB are made of it."""
    if not _START <= len(value) <= MAX_VALUE:
        raise Corrupt
    view = memoryview(value)
    magic, version, described, own = _HEADER.unpack_from(view)
    if (magic, version, own) != (_MAGIC, FORMAT, key) or len(value) < _START + described:
        raise Corrupt
    if view[_HEADER.size : _START] != _checksum(view[: _HEADER.size], view[_START:]):
        raise Corrupt
    try:
        description = _descriptions.decode(view[_START : _START + described])
    except msgspec.MsgspecError as error:
        raise Corrupt from error
    return _arrays(description, view[_START + described :])


def _checksum(head: bytes | memoryview, rest: bytes | memoryview) -> bytes:
    both = xxhash.xxh3_64(head)
    both.update(rest)
    return _SUM.pack(both.intdigest())


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
        if stored > len(data) or left < 0 or len(planes) not in (0, len(_WIDTHS.get(dtype.itemsize, ()))):
            raise Corrupt
        mine, data = data[:stored], data[stored:]
        array = _joined(mine, planes, size, dtype) if planes else np.frombuffer(mine, dtype)
        entry[name] = array.reshape(shape)
    if data:
        raise Corrupt
    return entry


def _planes(array: npt.NDArray[Any]) -> list[bytes]:
    """The array's byte planes, compressed where it pays; where it does for none the array as it is, alone."""
    widths = _WIDTHS.get(array.dtype.itemsize)
    if array.size < _WORTH_BYTES or widths is None:
        return [array.tobytes()]
    planes = [plane.tobytes() for plane in _cut(array.reshape(-1), widths)]
    packed = [zstd.compress(plane, options=_WRITE) for plane in planes]
    worth = [len(small) < _WORTH_SHARE * len(plane) for small, plane in zip(packed, planes, strict=True)]
    if not any(worth):
        return [array.tobytes()]
    return [small if pays else plane for small, plane, pays in zip(packed, planes, worth, strict=True)]


def _cut(array: npt.NDArray[Any], widths: Sequence[int]) -> list[npt.NDArray[Any]]:
    """The planes of an array of one axis, as strided views."""
    starts = [sum(widths[:index]) for index in range(len(widths))]
    kinds = [np.dtype(f"<u{width}") for width in widths]
    return [
        array.view(kind)[start // width :: array.itemsize // width]
        for start, width, kind in zip(starts, widths, kinds, strict=True)
    ]


def _joined(data: memoryview, lengths: Sequence[int], size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = np.empty(size // dtype.itemsize, dtype)
    for length, plane in zip(lengths, _cut(array, _WIDTHS[dtype.itemsize]), strict=True):
        stored, data = data[:length], data[length:]
        plane[:] = np.frombuffer(stored if length == plane.nbytes else _inflated(stored, plane.nbytes), plane.dtype)
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
