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

import math
import signal
import struct
from collections.abc import AsyncIterator
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from rl_onoff.errors import OnOffError, from_problem

#: At which a worker writes the stack of each of its threads to standard error.
DUMP_SIGNAL: Final = signal.SIGUSR2

CONTENT_TYPE: Final = "application/x-msgpack"
MAX_FRAME: Final = 1 << 30
_LENGTH: Final = struct.Struct("<I")

Side = Literal["a", "b"]


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


class SamplingParams(msgspec.Struct, frozen=True):
    """How one sequence's tokens are drawn (see `workers.sampling`). `top_k` 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Cost so far of the job a frame belongs to."""

    a_forwards: int = 0
    b_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    within_noise: int = 0


# ------------------------------------------------------------------------------------------------ jobs


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Sample one continuation of `ids` from one model. Answer: `Tokens`..., `Done`."""

    side: Side
    ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    ignore_eos: bool = False
    logprobs: int | None = None  # None: no log-probabilities; k: of the token and of the k most likely


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Rows of one model for positions `start`..`len(ids) - 1` of `ids`. Answer: `Rows`..., `Done`.

    With `top_k` each row is cut to its k largest entries, else it is whole, in `dtype`.
    """

    side: Side
    ids: list[int]
    start: int
    kind: Literal["logprobs", "probs", "logits"] = "logprobs"
    temperature: float = 1.0
    top_k: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Measures of A and B over the same solution. Answer: `Values`..., `Done`.

    The two prompts may differ (each model's own chat template); the tokens from `a_start` and `b_start` on must not.
    Tokens in `merge` count as one, the first of them. With `floor` one model is compared with itself, its logits
    rounded to bfloat16, over its own ids.
    """

    a_ids: list[int]
    a_start: int
    b_ids: list[int]
    b_start: int
    measures: list[str]
    temperature: float = 1.0
    merge: list[int] = []
    floor: Side | None = None


class SwitchGenerate(msgspec.Struct, frozen=True, tag="switch"):
    """Switched generation after `ids`. Answer: `Tokens`..., `Done`.

    `policy` is a policy's JSON form (`rl_onoff.policy.Policy`). With `state` (the fields of a `PolicyState`) a run is
    resumed: `ids` holds the prompt and the tokens emitted so far, `state` is the policy's after them.
    """

    ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    policy: dict[str, Any]
    measures: list[str] = []
    ignore_eos: bool = False
    lookahead: int | None = None  # None: the worker chooses; 0: token by token
    swapped: bool = False  # the pair's b plays A, and its a plays B
    state: dict[str, Any] | None = None
    logprobs: int | None = None  # as in `Generate`, from the row of the model that leads


class SwitchScore(msgspec.Struct, frozen=True, tag="switch-score"):
    """Walk a policy over the given tokens `start`..`len(ids) - 1`, and score each by the model that leads there.

    The signals are those a switched generation with this `sampling` would see after the same prefix; only the token is
    given. `logprobs` also asks for the k most likely tokens of the leader's row. With `state` a walk is resumed.
    Answer: `Walked`..., `Done`.
    """

    ids: list[int]
    start: int
    sampling: SamplingParams
    policy: dict[str, Any]
    logprobs: int = 0
    swapped: bool = False
    state: dict[str, Any] | None = None


Job = Generate | Score | Compare | SwitchGenerate | SwitchScore

# ---------------------------------------------------------------------------------------------- frames


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """The next tokens of a generation, one or more. Every list has one entry per token, or is empty.

    `values` holds the recorded measures; `top_ids` and `top_logprobs` the most likely tokens, best first.
    """

    ids: list[int]
    usage: Usage
    leads: str = ""
    values: dict[str, list[float]] = {}
    logprobs: list[float] = []
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []


class Rows(msgspec.Struct, frozen=True, tag="rows"):
    """Rows of consecutive positions: `values` `[n, V]`, or `[n, k]` with `ids` `[n, k]` best first.

    `token_logprobs` `[n]` is the log-probability of each position's own token and `entropy` `[n]` the row's, both of
    the whole row at the job's temperature; `tail` `[n]`, beside `ids`, the probability of all other tokens.
    """

    start: int
    values: Array
    ids: Array | None
    token_logprobs: Array
    entropy: Array
    tail: Array | None = None


class Values(msgspec.Struct, frozen=True, tag="values"):
    """Measures of consecutive positions, `[n]` float64 each, with what the summaries need beside them.

    `kernel` names what computed them.
    """

    start: int
    measures: dict[str, Array]
    logprobs_a: Array
    logprobs_b: Array
    top1_agree: Array
    kernel: str = ""


class Walked(msgspec.Struct, frozen=True, tag="walked"):
    """Who leads at consecutive given tokens, and what the leader thought of them: one entry per token each.

    `values` holds the policy's signals; `top_ids` and `top_logprobs` the leader's most likely tokens, best first.
    """

    start: int
    leads: str
    values: dict[str, list[float]]
    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]
    usage: Usage


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job is finished. `finish_reason` is `stop` (an EOS was emitted) or `length`, for generations."""

    usage: Usage = Usage()
    finish_reason: Literal["stop", "length"] | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job failed; `problem` as `OnOffError.problem()`."""

    problem: dict[str, Any]

    @classmethod
    def of(cls, error: OnOffError) -> Failed:
        return cls(error.problem())

    def error(self) -> OnOffError:
        return from_problem(self.problem)


Frame = Tokens | Rows | Values | Walked | Done | Failed

# ------------------------------------------------------------------------------------------------ info


class ModelInfo(msgspec.Struct, frozen=True):
    """One loaded model.

    `vocab_size` is V, the vocabulary the pair shares; `logit_columns` the width of the model's own logit matrix.
    `fingerprint` is a hash of weights, configuration and tokenizer files. `chat_template` is its own, in Jinja.
    """

    name: str
    source: str
    revision: str | None
    fingerprint: str
    dtype: str
    device: str
    vocab_size: int
    logit_columns: int
    max_len: int
    eos_ids: list[int]
    chat_template: str | None
    parameters: int


class PairInfo(msgspec.Struct, frozen=True):
    """A loaded pair, with the tokenizer both share as a `tokenizer.json` document.

    `special_tokens` maps names chat templates use (`bos_token`, `eos_token`, ...) to their text. `warnings` are
    findings of the pair check an operator should read. `noise` is how far a signal, and under `logprob` a
    log-probability, was seen to move with the shape of the forward pass alone. `libraries` are the versions of those
    that compute (`workers.libraries`).
    """

    name: str
    backend: str
    version: str
    a: ModelInfo
    b: ModelInfo
    tokenizer: str
    special_tokens: dict[str, str]
    warnings: list[str] = []
    noise: dict[str, float] = {}
    libraries: dict[str, str] = {}


class Health(msgspec.Struct, frozen=True):
    """`steps` counts forward passes; `active` the jobs in hand. Steps that stand still while jobs wait mean a hang."""

    steps: int
    active: int
    pid: int


# --------------------------------------------------------------------------------------------- framing

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


# --------------------------------------------------------------------------------- how a worker starts


class ModelSpec(msgspec.Struct, frozen=True):
    """Which model to load. `adapter` is a LoRA adapter over A's weights (side b only), instead of `path`."""

    name: str
    path: str | None = None
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"


class WorkerSpec(msgspec.Struct, frozen=True):
    """All a worker process is told, as one JSON document on its standard input.

    `sequences` is the number of sequences in flight at once, `max_len` caps the context (default: the models' own),
    `options` are the backend's own. With a `host` it listens on TCP, on `port` or a free one, instead of the unix
    `socket`, answers those alone who know `token`, tells its address (`{"address": "host:port"}`) as a line of standard
    output, and ends when nobody asked for its health for `lease` seconds.
    """

    pair: str
    backend: str
    socket: str
    a: ModelSpec
    b: ModelSpec
    sequences: int = 16
    max_len: int | None = None
    trust_remote_code: bool = False
    options: dict[str, Any] = {}
    host: str = ""
    port: int = 0
    token: str = ""
    lease: float = 0.0


class RemoteSpec(msgspec.Struct, frozen=True):
    """All that `python -m workers.launch.remote` is told, and without the agent's `token` the agent."""

    worker: WorkerSpec
    agent: str  # host:port
    token: str = ""
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL


class Placement(msgspec.Struct, frozen=True):
    """What a worker takes of a node of a Ray cluster, and which nodes may be it: in the words of `ray.remote`."""

    address: str
    num_gpus: float
    num_cpus: float
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}


class PlacedSpec(msgspec.Struct, frozen=True):
    """All that `python -m workers.launch.ray` is told. `python` is the worker's interpreter, on its node.

    A cluster that cannot be reached is tried for `patience` seconds; `grace` seconds lie between SIGTERM and SIGKILL.
    """

    worker: WorkerSpec
    placement: Placement
    python: str | None = None
    grace: float = 5.0
    patience: float = 0.0
