"""What crosses between the service and a worker.

One HTTP/1.1 request per job over a unix socket (or TCP): the body is one message, the answer a stream of frames, each
a 4-byte little-endian length and that many bytes of msgpack. A job's stream ends with exactly one `Done` or `Failed`;
if the connection ends without, the worker is gone. Closing the connection cancels the job. Arrays travel as raw bytes
with dtype and shape. Nothing is ever unpickled.

    GET  /info     PairInfo
    GET  /health   Health: answered beside the model loop, so that busy and hung can be told apart
    POST /run      Job -> frames
"""

from __future__ import annotations

from workers.wire.array import Array
from workers.wire.frames import Done, Failed, Frame, Rows, Tokens, Usage, Values, Walked
from workers.wire.framing import (
    CONTENT_TYPE,
    MAX_FRAME,
    ByteReader,
    decode_job,
    encode,
    encode_frame,
    is_terminal,
    read_frames,
)
from workers.wire.info import Health, ModelInfo, PairInfo
from workers.wire.jobs import Compare, Floor, Generate, Job, SamplingParams, Score, Side, SwitchGenerate, SwitchScore
from workers.wire.specs import DUMP_SIGNAL, ModelSpec, PlacedSpec, Placement, RemoteSpec, WorkerSpec

__all__ = [
    "CONTENT_TYPE",
    "DUMP_SIGNAL",
    "MAX_FRAME",
    "Array",
    "ByteReader",
    "Compare",
    "Done",
    "Failed",
    "Floor",
    "Frame",
    "Generate",
    "Health",
    "Job",
    "ModelInfo",
    "ModelSpec",
    "PairInfo",
    "PlacedSpec",
    "Placement",
    "RemoteSpec",
    "Rows",
    "SamplingParams",
    "Score",
    "Side",
    "SwitchGenerate",
    "SwitchScore",
    "Tokens",
    "Usage",
    "Values",
    "Walked",
    "WorkerSpec",
    "decode_job",
    "encode",
    "encode_frame",
    "is_terminal",
    "read_frames",
]
