"""The cache's pure parts: keys, the form of values, what is derived on reading, eviction, flights, the breaker."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.services.cache import codec, frames, keys
from app.services.cache.breaker import Breaker
from app.services.cache.codec import Corrupt, decode, encode
from app.services.cache.counters import CacheCounters
from app.services.cache.entry import Entry, joined, size_of
from app.services.cache.layouts import MeasuresLayout, RowsLayout
from app.services.cache.memory import MemoryStore
from app.services.cache.writes import Batch, WriteBehind
from workers.wire import Array, Compare, ModelInfo, PairInfo, Rows, Score

KEY = bytes(range(32))


def model(fingerprint: str = "f", **changes: Any) -> ModelInfo:
    info = ModelInfo("m", "path", None, fingerprint, "float32", "cpu", 1000, 1024, 512, [0], None, 1)
    return msgspec.structs.replace(info, **changes)


def info(a: ModelInfo | None = None, b: ModelInfo | None = None, **changes: Any) -> PairInfo:
    return msgspec.structs.replace(PairInfo("p", "hf", "1", a or model("a"), b or model("b"), "{}", {}), **changes)


def rows(job: Score, pair: PairInfo | None = None, namespace: str = "", **options: Any) -> RowsLayout:
    return RowsLayout(job, namespace, pair or info(), options)


def entry(positions: int = 4, columns: int = 1000) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    values = np.sort(rng.normal(-8, 3, (positions, columns)).astype(np.float32))[:, ::-1]
    return {
        "values": np.ascontiguousarray(values),
        "ids": np.tile(np.arange(columns, dtype=np.int32), (positions, 1)),
        "token_logprobs": values[:, 3].copy(),
        "entropy": rng.random(positions),
        "tail": rng.random(positions),
    }


# ------------------------------------------------------------------------------------------------------------ keys


def test_what_begins_alike_shares_the_blocks_of_its_beginning_and_no_others() -> None:
    root = keys.root(what="test")
    short, long = (keys.chain(root, [[1, 2]], list(range(5, 5 + n)), 16) for n in (40, 100))
    assert [(block.begin, block.end) for block in short] == [(0, 16), (16, 32), (32, 40)]
    assert [block.key for block in short[:2]] == [block.key for block in long[:2]]
    assert short[2].key not in {block.key for block in long}
    changed = keys.chain(root, [[1, 2]], [5, 6, 99, *range(8, 45)], 16)
    assert not {block.key for block in changed} & {block.key for block in short}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([[1, 2], [3]], [[1], [2, 3]]),  # the boundary between two prompts is part of a key
        ([[1, 2]], [[1], [2]]),
        ([[1]], [[256]]),
        ([[1, 0]], [[1]]),
    ],
)
def test_prompts_never_run_together(left: list[list[int]], right: list[list[int]]) -> None:
    root = keys.root(what="test")
    assert keys.chain(root, left, [7, 8], 16)[0].key != keys.chain(root, right, [7, 8], 16)[0].key


def test_fields_are_tagged() -> None:
    assert keys.root(a="x", b="yz") != keys.root(a="xy", b="z")
    assert keys.root(a="x", b="") != keys.root(a="", b="x")
    assert keys.root(a=1.0) != keys.root(a="1.0")


def test_all_that_decides_a_row_is_in_its_key() -> None:
    job = Score("a", [5, 6, 7, 8], 2)
    base = rows(job).blocks[0].key
    assert rows(job).blocks[0].key == base
    assert rows(job, info(b=model("another"))).blocks[0].key == base  # B has no part in A's rows
    for other in (
        rows(msgspec.structs.replace(job, side="b")),
        rows(msgspec.structs.replace(job, start=3)),
        rows(msgspec.structs.replace(job, kind="probs")),
        rows(msgspec.structs.replace(job, temperature=0.7)),
        rows(msgspec.structs.replace(job, top_k=5)),
        rows(msgspec.structs.replace(job, merge=[3, 4])),
        rows(job, namespace="tenant"),
        rows(job, info(a=model("retrained"))),
        rows(job, info(a=model("a", dtype="bfloat16"))),
        rows(job, info(a=model("a", device="cuda:0"))),
        rows(job, info(backend="vllm")),
        rows(job, info(libraries={"torch": "2.13.0+cpu"})),
        rows(job, float32_head=False),
    ):
        assert other.blocks[0].key != base
    assert rows(msgspec.structs.replace(job, merge=[3])).blocks[0].key == base  # one alone is as it was
    top = [rows(msgspec.structs.replace(job, top_k=5, merge=merge)) for merge in ([], [3, 4])]
    assert top[0].blocks[0].key != top[1].blocks[0].key
    whole = [each.whole.layout.blocks[0].key for each in top if each.whole is not None]
    assert whole[0] == base != whole[1]  # lists of merged rows are not cut from rows that are not
    upgraded = [rows(job, info(libraries={"torch": version})).blocks[0].key for version in ("2.13.0", "2.14.0")]
    assert upgraded[0] != upgraded[1]
    compare = Compare([1, 2, 3], 1, [1, 2, 3], 1, ["js", "kl_ab"])
    found = {
        MeasuresLayout(each, "", info(), {}).blocks[0].key
        for each in (
            compare,
            msgspec.structs.replace(compare, measures=["js"]),
            msgspec.structs.replace(compare, merge=[3, 4]),
            msgspec.structs.replace(compare, temperature=2.0),
        )
    }
    assert len(found) == 4
    reordered = msgspec.structs.replace(compare, measures=["kl_ab", "js"])
    assert MeasuresLayout(reordered, "", info(), {}).blocks[0].key in found


@pytest.mark.parametrize(("vocab_size", "positions"), [(100, 16), (32_000, 8), (151_936, 2), (5_000_000, 1)])
def test_blocks_of_whole_rows_stay_near_a_megabyte(vocab_size: int, positions: int) -> None:
    assert keys.row_positions(vocab_size) == positions


# ---------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(("positions", "columns"), [(4, 1000), (8, 1000), (3, 20), (1, 5000)])
def test_a_value_comes_back_bit_for_bit(positions: int, columns: int) -> None:
    before = entry(positions, columns) | {"kernel": np.arange(2 * positions, dtype=np.uint8).reshape(positions, 2)}
    before["values"][0, :3] = -np.inf, -0.0, 1e-45
    value = encode(KEY, before)
    assert value is not None
    assert len(value) < (0.8 if positions * columns > 4096 else 1.1) * size_of(before) + 200
    after = decode(KEY, value)
    assert {n: (a.dtype, a.shape) for n, a in after.items()} == {n: (a.dtype, a.shape) for n, a in before.items()}
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)
    for array in after.values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_no_flipped_bit_is_taken_for_a_number() -> None:
    small, large = encode(KEY, entry(2, 20)), encode(KEY, entry(4, 2000))
    assert small is not None
    assert large is not None
    for value, step in ((small, 1), (large, 997)):
        for bit in range(0, 8 * len(value), step):
            broken = bytearray(value)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Corrupt):
                decode(KEY, bytes(broken))


def test_a_value_cut_short_or_of_another_key_or_format_is_corrupt() -> None:
    value = encode(KEY, entry(2, 20))
    assert value is not None
    foreign = [value[:end] for end in range(len(value))]
    foreign += [b"", b"hello", value + b"x", b"\x80\x04K\x01." * 30]  # the last a pickle
    for other in foreign:
        with pytest.raises(Corrupt):
            decode(KEY, other)
    with pytest.raises(Corrupt):
        decode(bytes(32), value)
    newer = bytearray(value)
    newer[4] += 1
    with pytest.raises(Corrupt):
        decode(KEY, bytes(newer))


def forged(described: Any, body: bytes) -> bytes:
    """A value whose checksum holds."""
    description = msgspec.msgpack.encode(described)
    head = codec._HEADER.pack(codec._MAGIC, keys.FORMAT, len(description), KEY)
    rest = description + body
    return head + codec._checksum(head, rest) + rest


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = codec.zstd.compress(bytes(1 << 28))
    planes = (len(bomb), 0, 0)
    for count in (1 << 28, 1 << 20):
        with pytest.raises(Corrupt):
            decode(KEY, forged([("values", "float32", (count,), planes)], bomb))


@pytest.mark.parametrize(
    "described",
    [
        [("x", "float32", (2,), ())],
        [("x", "float32", (-1,), ())],
        [("x", "float32", (1 << 40,), ())],
        [("x", "object", (1,), ())],
        [("x", "float32", (1,), (2, 2))],
        [("x", "float32", (1,), (-4, 4, 4))],
        [("x", "float32", (1,), (1, 1, 1, 1))],
        [("x", "float32", (), ()), ("y", "float32", (1,), ())],
        [],
        {},
        [("x", "float32", (1,))],
    ],
)
def test_a_description_that_does_not_fit_its_bytes_is_corrupt(described: Any) -> None:
    assert decode(KEY, forged([("x", "float32", (1,), ())], b"\0\0\0\0"))["x"].tolist() == [0.0]
    with pytest.raises(Corrupt):
        decode(KEY, forged(described, b"\0\0\0\0"))


def test_what_is_too_large_is_not_stored() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 62, (600_000,), dtype=np.int64)
    assert encode(KEY, {"values": noise}) is None


# --------------------------------------------------------------------------------------------------------- reading


def test_a_smaller_k_is_cut_from_a_larger_one_as_a_worker_would_have() -> None:
    held = entry(3, 8)
    asked = rows(Score("a", [1, 2, 3, 4], 1, top_k=5))
    assert asked.serves(held, 3)
    got = asked.answer(held, 7)
    assert got.start == 7
    np.testing.assert_array_equal(got.values.numpy(), held["values"][:, :5])
    np.testing.assert_array_equal(got.ids.numpy(), held["ids"][:, :5])  # type: ignore[union-attr]
    kept = np.exp(held["values"][:, :5].copy().astype(np.float64)).sum(-1)
    np.testing.assert_array_equal(got.tail.numpy(), np.maximum(0.0, 1.0 - kept))  # type: ignore[union-attr]
    assert not rows(Score("a", [1, 2, 3, 4], 1, top_k=9)).serves(held, 3)
    # Of probabilities and logits no tail follows from the k best: another k is another key.
    probs = [rows(Score("a", [1, 2, 3, 4], 1, top_k=k, kind="probs")) for k in (5, 8)]
    assert probs[0].blocks[0].key != probs[1].blocks[0].key


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("k", [1, 7, 64, 999, 1000])
def test_lists_are_cut_from_whole_rows_as_a_worker_would_have(library: str, k: int) -> None:
    """Bit for bit, with all that comes beside them."""
    import torch

    from workers.scoring import _cut

    rng = np.random.default_rng(k)
    different = [-1.0 - 0.01 * rng.permutation(1000) for _ in range(4)]
    held: Any = np.float32([row - np.log(np.exp(row).sum()) for row in different])
    computed = torch.from_numpy(held) if library == "torch" else held
    job = Score("a", [1, 2, 3, 4, 5], 1, top_k=k)
    want = _cut(computed, job, 1, 5)
    whole = _cut(computed, msgspec.structs.replace(job, top_k=None), 1, 5)
    asked = rows(job)
    assert asked.whole is not None
    lists = asked.whole.best(asked.whole.layout.entry(whole))
    assert lists is not None
    assert asked.serves(lists, 4)
    assert asked.answer(lists, 0) == want


def test_equal_values_are_not_cut_from_whole_rows() -> None:
    whole = rows(Score("a", [1, 2], 1, top_k=3)).whole
    assert whole is not None
    beside = {"token_logprobs": np.zeros(1, np.float32), "entropy": np.zeros(1)}

    def lists(*values: float) -> Entry | None:
        return whole.best({"values": np.float32([values]), **beside})

    assert lists(-1, -3, -2, -4, -4) is not None  # equal ones beyond the list
    assert lists(-1, -3, -2, -3, -4) is None  # either may be the third
    assert lists(-1, -2, -2, -3, -4) is None  # either may be the second
    assert rows(Score("a", [1, 2], 1, top_k=3, kind="probs")).whole is None  # whose tail is not in them


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_dtype_is_made_on_reading_as_workers_make_it(dtype: Any) -> None:
    from workers.scoring import _stored

    whole = {name: array for name, array in entry().items() if name not in ("ids", "tail")}
    got = rows(Score("a", [1, 2, 3, 4, 5], 1, dtype=dtype)).answer(whole, 0)
    assert got.values == _stored(whole["values"], dtype)


def test_an_entry_of_another_shape_serves_nobody() -> None:
    whole = {name: array for name, array in entry().items() if name not in ("ids", "tail")}
    asked = rows(Score("a", [1, 2, 3, 4, 5], 1))
    assert asked.serves(whole, 4)
    assert not asked.serves(whole, 3)
    assert not asked.serves({**whole, "values": whole["values"][:, :10]}, 4)
    assert not asked.serves({**whole, "values": whole["values"].astype(np.float64)}, 4)
    assert not asked.serves({}, 4)


# -------------------------------------------------------------------------------------------------------- in process


def counters() -> CacheCounters:
    return CacheCounters(CollectorRegistry())


async def test_the_embedded_store_stays_within_its_bytes_and_forgets_what_was_not_used() -> None:
    store = MemoryStore(100_000, counters())
    names = [bytes([i]) * 32 for i in range(20)]
    for name in names[:10]:
        store.put(name, {"x": np.zeros(1000)}, bulky=False)
    await store.get([names[0]])
    for name in names[10:15]:
        store.put(name, {"x": np.zeros(1000)}, bulky=False)
    kept = [entry is not None for entry in await store.get(names[:15])]
    assert kept[0]
    assert kept[14]
    assert not kept[1]
    assert sum(kept) <= 100_000 // 8000


async def test_whole_rows_do_not_drive_out_the_rest() -> None:
    store = MemoryStore(100_000, counters())
    store.put(KEY, {"x": np.zeros(100)}, bulky=False)
    for i in range(50):
        store.put(bytes([i]) * 32, {"x": np.zeros(2000)}, bulky=True)
    assert (await store.get([KEY]))[0] is not None
    store.put(bytes(32), {"x": np.zeros(100_000)}, bulky=True)  # larger than all there is: not kept
    assert (await store.get([KEY]))[0] is not None


async def test_writes_wait_in_bounded_room_and_can_be_read_meanwhile() -> None:
    written: list[Batch] = []
    free = asyncio.Event()

    async def write(batch: Batch) -> None:
        await free.wait()
        written.append(batch)

    writes = WriteBehind(write, limit=3000, batch=1000)
    one: Entry = {"x": np.zeros(100)}
    names = [bytes([i]) * 32 for i in range(6)]
    assert [writes.put(name, one) for name in names] == [True] * 3 + [False] * 3
    assert writes.get(names[0]) is one
    await asyncio.sleep(0)
    again: Entry = {"x": np.ones(100)}
    assert writes.put(names[0], again)  # while its first form is being written
    free.set()
    await writes.close(1)
    assert writes.size == 0
    assert [entry for batch in written for name, entry in batch.items() if name == names[0]] == [one, again]


async def test_the_breaker_opens_at_once_and_closes_when_there_is_an_answer() -> None:
    answers, changes = [False, False, True], []

    async def probe() -> None:
        if not answers.pop(0):
            raise TimeoutError

    breaker = Breaker(probe, 0.001, changes.append)
    assert breaker.closed
    breaker.trip()
    breaker.trip()
    assert not breaker.closed
    async with asyncio.timeout(5):
        while not breaker.closed:
            await asyncio.sleep(0.001)
    assert changes == [False, True]
    assert answers == []


def test_rows_of_a_frame_are_stored_as_they_are() -> None:
    job = Score("a", [1, 2, 3, 4, 5], 1, top_k=8)
    held = entry(4, 8)
    frame = rows(job).answer(held, 0)
    assert isinstance(frame, Rows)
    assert frame.ids == Array.of(held["ids"].astype(np.int64))
    for name, array in rows(job).entry(frame).items():
        assert array.tobytes() == held[name].tobytes()


@pytest.mark.parametrize("chunks", [[4096], [1] * 37, [5, 40, 3, 16]])
async def test_chunks_of_any_length_become_blocks_and_a_row_is_copied_once(
    chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = 0

    def counting(parts: list[Entry]) -> Entry:
        nonlocal copied
        copied += sum(len(part["x"]) for part in parts)
        return joined(parts)

    monkeypatch.setattr(frames, "joined", counting)
    positions = sum(chunks)
    layout = rows(Score("a", list(range(positions + 1)), 1, top_k=5))
    store = MemoryStore(1 << 24, counters())
    blocks = frames._Blocks(store, layout, 0)
    for end, count in zip(np.cumsum(chunks).tolist(), chunks, strict=True):
        blocks.add({"x": np.arange(end - count, end)})
    held = await store.get([block.key for block in layout.blocks])
    assert [part["x"].tolist() for part in held if part] == [list(range(b.begin, b.end)) for b in layout.blocks]
    assert copied == positions
