"""Forward passes that are recorded once and replayed.

A GPU computes a pass over a few tokens faster than Python tells it what to compute, kernel by kernel. A CUDA graph
tells it once. It repeats the same kernels on the same memory, so what differs between passes of one shape is read from
a tensor that is written before each replay, and every recording leaves its logits in one place. Passes are filled up to
a few shapes; one that comes for the second time is recorded.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import torch

logger = logging.getLogger("rl_onoff.worker")

#: Longer or larger passes are busy with computing: tokens of a sequence, and of all sequences together.
TOKENS: Final = 32
POSITIONS: Final = 256
#: Recordings kept of one model, the least recently used are dropped.
KEPT: Final = 48
#: The least number of positions that attention reads.
_LENGTH: Final = 256


class Shape(NamedTuple):
    """What is baked into a recording; the rest is given to it."""

    rows: int
    tokens: int  # of each row
    length: int  # positions 0..length-1 are read
    in_place: bool  # the rows' slots are the first ones, in order, and can be read without a copy


class Recorder(Protocol):
    """Records what one model computes."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What repeats `run`, all of it that happens on the device, reading and writing the same memory.

        Raises RuntimeError for what cannot be recorded.
        """
        ...

    def rehearsal(self) -> AbstractContextManager[Any]:
        """Within it what cannot be recorded, a look at a result half-way, raises RuntimeError."""
        ...


class CudaRecorder:
    """Recordings that share their memory: no two run at a time, and none leaves anything in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        # Not `torch.cuda.graph`: it empties the allocator's cache each time, and leaves its stream current if it fails.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            outer = torch.cuda.current_stream()
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream):
                # Other threads go on with what they do on the device.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
            outer.wait_stream(self._stream)
        replay: Callable[[], None] = graph.replay
        return replay

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        # A recording that fails half-way leaves torch's allocator in disorder, in releases up to 2.12 at least.
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def recorder_on(device: torch.device) -> Callable[[], Recorder] | None:
    """What makes recorders on `device`, where it is of a kind that gains by it."""
    return (lambda: CudaRecorder(device)) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class _Recording:
    given: torch.Tensor
    logits: torch.Tensor  # [rows, tokens, columns] of the last replay of any recording
    replay: Callable[[], None]


class Graphs:
    """The recordings of one model over one cache. `compute` is the pass itself.

    It takes a shape and `[rows, 2 + tokens]` int64: of each row its slot, where its tokens start, and these. It returns
    logits `[rows, tokens, columns]`, and must not look at what it was given. Attention reads multiples of `bucket`
    positions.
    """

    def __init__(
        self,
        make_recorder: Callable[[], Recorder],
        compute: Callable[[Shape, torch.Tensor], torch.Tensor],
        device: torch.device,
        bucket: int = 1,
    ) -> None:
        self._make_recorder, self._compute, self._device, self._bucket = make_recorder, compute, device, bucket
        self._recorder = make_recorder()
        self._known: OrderedDict[Shape, _Recording | None] = OrderedDict()  # None: seen once
        self._logits = torch.empty(0)  # of the last replay: [POSITIONS, columns], once it is known how many
        self.failure: str | None = None  # why nothing more is recorded
        self.rehearses = False  # passes seen for the first time, so that none is recorded in vain
        self.replays = 0

    def filled(self, rows: int, tokens: int) -> int | None:
        """To how many tokens a row is filled up; None for passes that are not recorded."""
        filled = _power(tokens)
        return filled if self.failure is None and filled <= TOKENS and _power(rows) * filled <= POSITIONS else None

    def clear(self) -> None:
        """Before the memory that recordings read and write changes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the last replay may still run
        self._known.clear()
        self._recorder = self._make_recorder()  # shared memory ends with its last recording

    def logits(self, slots: list[int], starts: list[int], ids: list[list[int]], capacity: int) -> torch.Tensor:
        """Of a pass over as many tokens of every row as `filled` said: `[rows, tokens, columns]`."""
        count, tokens = len(ids), len(ids[0])
        rows = _power(count)
        length = -(-_length(max(starts) + tokens) // self._bucket) * self._bucket
        shape = Shape(rows, tokens, min(length, capacity), slots == list(range(rows)))
        rest = [[slot, start, *new] for slot, start, new in zip(slots, starts, ids, strict=True)]
        # More rows: the last one again, which writes what it wrote.
        given = torch.tensor(rest + rest[-1:] * (rows - count))

        recording = self._known.get(shape)
        if recording is None and shape in self._known:
            recording = self._recorded(shape, given)
        if recording is None:
            logits = self._unrecorded(shape, given.to(self._device))
            self._remember(shape, None)
            return logits[:count]
        self._remember(shape, recording)
        recording.given.copy_(given)
        recording.replay()
        self.replays += 1
        return recording.logits[:count].clone()

    def _unrecorded(self, shape: Shape, given: torch.Tensor) -> torch.Tensor:
        try:
            with self._recorder.rehearsal() if self.rehearses else nullcontext():
                logits = self._compute(shape, given)
        except RuntimeError as error:
            if not self.rehearses:
                raise
            self.failure, self.rehearses = str(error), False
            logits = self._compute(shape, given)
        if not self._logits.numel():
            self._logits = logits.new_empty(POSITIONS, logits.shape[-1])
        return logits

    def _recorded(self, shape: Shape, given: torch.Tensor) -> _Recording | None:
        static = given.to(self._device)
        logits = self._logits[: shape.rows * shape.tokens].view(shape.rows, shape.tokens, -1)

        def run() -> None:
            logits.copy_(self._compute(shape, static))

        try:
            return _Recording(static, logits, self._recorder.record(run))
        except RuntimeError as error:  # of memory, too: what is asked for can still be computed without
            logger.warning("passes are recorded no more, and computed as they come: %s", error)
            self.failure = str(error)  # the error itself would keep the memory of the pass
        self.clear()
        return None

    def _remember(self, shape: Shape, recording: _Recording | None) -> None:
        self._known[shape] = recording
        self._known.move_to_end(shape)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
            if not any(self._known.values()):
                self._recorder = self._make_recorder()


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _length(end: int) -> int:
    """The next of 256, 384, 512, 768, 1,024...: attention reads at most half of it in vain."""
    power = max(_LENGTH, _power(end))
    return power // 4 * 3 if power > _LENGTH and end <= power // 4 * 3 else power
