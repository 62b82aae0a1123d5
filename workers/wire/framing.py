"""Messages as bytes, and back."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import msgspec

from workers.wire.frames import Done, Failed, Frame
from workers.wire.jobs import Job

CONTENT_TYPE: Final = "application/x-msgpack"
MAX_FRAME: Final = 1 << 30
_LENGTH: Final = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
_frame_decoder = msgspec.msgpack.Decoder(Frame)
_job_decoder = msgspec.msgpack.Decoder(Job)


class ByteReader(Protocol):
    """The part of `asyncio.StreamReader` (and aiohttp's) that framing needs."""

    async def readexactly(self, n: int, /) -> bytes: ...


def encode(message: Any) -> bytes:
    """A message alone, as in a request body."""
    return _encoder.encode(message)


def encode_frame(frame: Frame) -> bytes:
    """A frame of an answer, length first."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes exceeds {MAX_FRAME}: send it in parts")
    return _LENGTH.pack(len(body)) + body


def decode_job(data: bytes) -> Job:
    """Raises `msgspec.ValidationError` for anything that is not exactly a job."""
    job: Job = _job_decoder.decode(data)
    return job


async def read_frames(reader: ByteReader) -> AsyncIterator[Frame]:
    """The frames of an answer, the terminal one included.

    Raises `asyncio.IncompleteReadError` (or the transport's own error) when the stream ends before it.
    """
    while True:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes exceeds {MAX_FRAME}")
        frame = _frame_decoder.decode(await reader.readexactly(length))
        yield frame
        if isinstance(frame, Done | Failed):
            return


def is_terminal(frame: Frame) -> bool:
    return isinstance(frame, Done | Failed)
