"""How the answer to a scoring job lies in the cache: its blocks, and the way between entries and frames.

What is stored is what the worker computed: float32 values of the kind and at the temperature asked for (both are part
of the key, as numpy here and an array library there would not round alike). Derived on reading, exactly, are the dtype
of the values and, of log-probabilities, a smaller k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from app.services.cache import keys
from app.services.cache.entry import Entry
from app.services.cache.keys import Block
from workers.wire import Array, Compare, PairInfo, Rows, Score, Values

#: Room for the name of what computed a block, which is stored at each of its positions.
_KERNEL_BYTES: Final = 48


class Layout(Protocol):
    """One job's. `bulky`: whole rows. `width` is about the bytes of a position. `whole` is where else
    its entries may be had."""

    blocks: list[Block]
    positions: int
    bulky: bool
    width: int
    whole: Whole | None

    def serves(self, entry: Entry, positions: int) -> bool:
        """Whether the entry has what the job asks for, over so many positions."""
        ...

    def answer(self, entry: Entry, start: int) -> Rows | Values:
        """The frame the job is answered with: the entry's positions, from `start` on."""
        ...

    def as_asked(self, frame: Rows) -> bool:
        """Whether a frame made for a job this one is `within` is this one's answer."""
        ...

    def entry(self, frame: Rows | Values) -> Entry:
        """What to store of a frame that answers `rest`; views."""
        ...

    def rest(self, position: int) -> Score | Compare:
        """The job for what is left from `position` on."""
        ...

    def within(self, other: Layout) -> bool:
        """Whether entries made for `other`, whose last key is the same, serve this job."""
        ...


class Whole(NamedTuple):
    """Whole rows, of which the `k` best are asked for."""

    layout: RowsLayout
    k: int

    def best(self, entry: Entry) -> Entry | None:
        """Their lists, of an entry of rows of log-probabilities.

        None where equal values leave open which are the best, or in what order: workers need not settle it alike.
        """
        values = entry["values"]
        rest = max(0, values.shape[-1] - self.k - 1)
        ids = np.argpartition(values, rest, axis=-1)[:, rest:]
        best = np.take_along_axis(values, ids, axis=-1)
        order = np.argsort(-best, axis=-1)
        best, ids = (np.take_along_axis(array, order, axis=-1) for array in (best, ids))
        if (best[:, 1:] == best[:, :-1]).any():
            return None
        best = np.ascontiguousarray(best[:, : self.k])
        lists = {"values": best, "ids": ids[:, : self.k].astype(np.int32), "tail": _tail(best)}
        return {**lists, "token_logprobs": entry["token_logprobs"], "entropy": entry["entropy"]}


class RowsLayout:
    """Of a `Score`: whole rows, or their k best."""

    def __init__(self, job: Score, namespace: str, info: PairInfo, options: Mapping[str, Any]) -> None:
        vocab_size = (info.a if job.side == "a" else info.b).vocab_size
        self._job = job
        self._vocab_size = vocab_size
        self.bulky = job.top_k is None
        self.positions = len(job.ids) - job.start
        size = keys.row_positions(vocab_size) if self.bulky else keys.POSITIONS
        root = keys.root(
            what="rows" if self.bulky else "top",
            size=size,
            namespace=namespace,
            model=keys.identity(info, job.side, options),
            kind=job.kind,
            temperature=float(job.temperature),
            merge=sorted(job.merge) if len(job.merge) > 1 else [],  # one alone changes nothing
            # Of log-probabilities alone a smaller k has all it needs in a larger one: its tail follows from them.
            k=None if job.kind == "logprobs" else job.top_k,
        )
        self.width = 4 * vocab_size if job.top_k is None else 8 * job.top_k
        self.blocks = keys.chain(root, [job.ids[: job.start]], job.ids[job.start :], size)
        self.whole: Whole | None = None
        if job.top_k is not None and job.kind == "logprobs":
            rows = RowsLayout(msgspec.structs.replace(job, top_k=None), namespace, info, options)
            self.whole = Whole(rows, job.top_k)

    def serves(self, entry: Entry, positions: int) -> bool:
        columns = entry["values"].shape[-1] if "values" in entry else 0
        expected = {"values": (positions, columns), "token_logprobs": (positions,), "entropy": (positions,)}
        if not self.bulky:
            expected |= {"ids": (positions, columns), "tail": (positions,)}
        if not _shaped(entry, expected) or entry["values"].dtype != np.float32:
            return False
        return columns == self._vocab_size if self._job.top_k is None else columns >= self._job.top_k

    def answer(self, entry: Entry, start: int) -> Rows:
        values, ids, tail = entry["values"], entry.get("ids"), entry.get("tail")
        k = self._job.top_k
        if k is not None and ids is not None and k < values.shape[-1]:
            values, ids = np.ascontiguousarray(values[:, :k]), ids[:, :k]
            tail = _tail(values)
        return Rows(
            start=start,
            values=in_dtype(values, self._job.dtype),
            ids=None if ids is None else Array.of(ids.astype(np.int64)),
            token_logprobs=Array.of(entry["token_logprobs"]),
            entropy=Array.of(entry["entropy"]),
            tail=None if tail is None else Array.of(tail),
        )

    def as_asked(self, frame: Rows) -> bool:
        return frame.values.dtype == self._job.dtype and frame.values.shape[-1] == (self._job.top_k or self._vocab_size)

    def entry(self, frame: Rows | Values) -> Entry:
        assert isinstance(frame, Rows)  # noqa: S101
        found = {
            "values": frame.values.numpy(),
            "token_logprobs": frame.token_logprobs.numpy(),
            "entropy": frame.entropy.numpy(),
        }
        if frame.ids is not None:
            found["ids"] = frame.ids.numpy().astype(np.int32)
        if frame.tail is not None:
            found["tail"] = frame.tail.numpy()
        return found

    def rest(self, position: int) -> Score:
        return msgspec.structs.replace(self._job, start=self._job.start + position, dtype="float32")

    def within(self, other: Layout) -> bool:
        return isinstance(other, RowsLayout) and (self._job.top_k or 0) <= (other._job.top_k or 0)


class MeasuresLayout:
    """Of a `Compare`. A set of measures is stored as a whole: its values are of the same pass."""

    bulky = False
    whole: Whole | None = None

    def __init__(self, job: Compare, namespace: str, info: PairInfo, options: Mapping[str, Any]) -> None:
        self._job = job
        self._names = sorted(set(job.measures))
        self.positions = len(job.a_ids) - job.a_start
        self.width = 8 * (len(self._names) + 3)
        root = keys.root(
            what="measures",
            size=keys.POSITIONS,
            namespace=namespace,
            a=keys.identity(info, "a", options),
            b=keys.identity(info, "b", options),
            measures=self._names,
            temperature=float(job.temperature),
            merge=sorted(job.merge),
        )
        prompts = [job.a_ids[: job.a_start], job.b_ids[: job.b_start]]
        self.blocks = keys.chain(root, prompts, job.a_ids[job.a_start :], keys.POSITIONS)

    def serves(self, entry: Entry, positions: int) -> bool:
        names = [*(f"measure {name}" for name in self._names), "logprobs_a", "logprobs_b", "top1_agree"]
        return _shaped(entry, {**dict.fromkeys(names, (positions,)), "kernel": (positions, _KERNEL_BYTES)})

    def answer(self, entry: Entry, start: int) -> Values:
        return Values(
            start=start,
            measures={name: Array.of(entry[f"measure {name}"]) for name in self._names},
            logprobs_a=Array.of(entry["logprobs_a"]),
            logprobs_b=Array.of(entry["logprobs_b"]),
            top1_agree=Array.of(entry["top1_agree"]),
            kernel=entry["kernel"][0].tobytes().rstrip(b"\0").decode(errors="replace"),
        )

    def as_asked(self, frame: Rows) -> bool:
        return False

    def entry(self, frame: Rows | Values) -> Entry:
        assert isinstance(frame, Values)  # noqa: S101
        kernel = np.frombuffer(frame.kernel.encode()[:_KERNEL_BYTES].ljust(_KERNEL_BYTES, b"\0"), np.uint8)
        return {f"measure {name}": array.numpy() for name, array in frame.measures.items()} | {
            "kernel": np.tile(kernel, (frame.logprobs_a.shape[0], 1)),
            "logprobs_a": frame.logprobs_a.numpy(),
            "logprobs_b": frame.logprobs_b.numpy(),
            "top1_agree": frame.top1_agree.numpy(),
        }

    def rest(self, position: int) -> Compare:
        job = self._job
        return msgspec.structs.replace(job, a_start=job.a_start + position, b_start=job.b_start + position)

    def within(self, other: Layout) -> bool:
        return True


def in_dtype(values: npt.NDArray[np.float32], dtype: str) -> Array:
    """Rounded to nearest even, as workers do."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return Array.of(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), "bfloat16")
    return Array.of(values.astype(dtype, copy=False), dtype)


def _tail(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """As workers compute it (workers/scoring.py)."""
    tail: npt.NDArray[np.float64] = np.maximum(0.0, 1.0 - np.exp(logprobs.astype(np.float64)).sum(axis=-1))
    return tail


def _shaped(entry: Entry, expected: Mapping[str, Sequence[int]]) -> bool:
    return {name: array.shape for name, array in entry.items()} == expected
