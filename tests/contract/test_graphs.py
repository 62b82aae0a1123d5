"""Recorded passes: those computed as they come, whatever varies between two of one shape.

On a processor a tape stands in for a CUDA graph (`tests.contract.tape`): it holds what Python told the device once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract import tiny
from tests.contract.conftest import spec
from tests.contract.tape import TapeRecorder
from tests.contract.test_lookahead import cases, equal, loaded, typical_divergences
from workers.backends import load_pair
from workers.backends.hf import graphs
from workers.backends.hf import pair as hf_pair
from workers.backends.hf.attention import fold_attention
from workers.backends.hf.slots import Slot, SlotCache

Folders = dict[str, tuple[Path, Path]]


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on the processor are recorded."""
    monkeypatch.setattr(hf_pair, "recorder_on", lambda device: TapeRecorder)


def recorded(cache: SlotCache) -> graphs.Graphs:
    assert cache.graphs is not None
    return cache.graphs


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@torch.inference_mode()
def test_passes_of_all_kinds_of_rows_are_what_they_are_unrecorded(folders: Folders, architecture: str) -> None:
    """Sequences of their own lengths grow, roll back and take turns, beyond the window and the first capacity."""
    rng = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(folders[architecture][0], dtype=torch.float32)
    fold_attention(model)
    plain, taped = SlotCache(model, 5, tiny.MAX_LEN), SlotCache(model, 5, tiny.MAX_LEN, make_recorder=TapeRecorder)
    sides = [(cache, [Slot(i) for i in range(5)]) for cache in (plain, taped)]
    ends = [0] * 5
    for _ in range(150):
        who = sorted(rng.sample(range(5), rng.choice([1, 1, 2, 3, 5])))
        counts = [rng.choice([1, 1, 1, 4, 5])] * len(who) if rng.random() < 0.8 else [rng.randint(1, 9) for _ in who]
        starts = [max(0, ends[i] - rng.choice([0, 0, 2])) for i in who]
        tokens = [[rng.randrange(tiny.VOCAB_SIZE) for _ in range(count)] for count in counts]
        keeps = [rng.randint(1, count) for count in counts]
        for i, start, count in zip(who, starts, counts, strict=True):
            ends[i] = start + count if start + count < tiny.MAX_LEN - 9 else 0
        want, have = (cache.forward([slots[i] for i in who], tokens, starts, keeps) for cache, slots in sides)
        for one, other, keep in zip(want, have, keeps, strict=True):
            assert one.shape == other.shape == (keep, tiny.COLUMNS)
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert [slot.ids for slot in sides[0][1]] == [slot.ids for slot in sides[1][1]]
    assert recorded(taped).failure is None
    assert recorded(taped).replays > 50


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
async def test_lookahead_over_recordings_is_lock_step(folders: Folders, architecture: str, taped: None) -> None:
    async with loaded(folders[architecture], "float64", sequences=16) as pair:
        jobs = cases(pair, await typical_divergences(pair), 12, seed=3)
        await equal(pair, jobs, 1e-7)
        for side in (pair.a, pair.b):
            assert recorded(side._cache).replays > 100  # type: ignore[attr-defined]
            assert recorded(side._cache).failure is None  # type: ignore[attr-defined]
        assert not [warning for warning in pair.info.warnings if "recorded" in warning]
        assert all(value < 1e-9 for value in pair.info.noise.values())


async def test_strict_rows_are_so_in_recordings_too(folders: Folders, taped: None) -> None:
    async with loaded(folders["llama"], "bfloat16", sequences=4, options={"strict": True}) as pair:
        assert set(pair.info.noise.values()) == {0.0}


async def test_an_adapter_is_recorded_beside_its_base(folders: Folders, tmp_path: Path, taped: None) -> None:
    from peft import LoraConfig, get_peft_model

    base = folders["llama"][0]
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path)
    made = spec(base, base, sequences=2)
    pair = load_pair(msgspec.structs.replace(made, b=msgspec.structs.replace(made.b, path=None, adapter=str(tmp_path))))
    ids = list(range(5, 25))
    try:
        for side, scope in ((pair.a, model.disable_adapter()), (pair.b, nullcontext())):
            with scope, torch.inference_mode():
                want = model(input_ids=torch.tensor([ids])).logits[0, :, : tiny.VOCAB_SIZE].log_softmax(-1)
            async with side.sequence() as sequence:
                have = torch.cat([await sequence.rows(ids[:end], end) for end in range(1, 21)])
            assert recorded(side._cache).replays > 10  # type: ignore[attr-defined]
            torch.testing.assert_close(have, want, rtol=0, atol=1e-4)
    finally:
        await pair.close()


class _NoRecorder(TapeRecorder):
    def record(self, run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


async def test_what_cannot_be_recorded_is_served_unrecorded_and_said(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_pair, "recorder_on", lambda device: _NoRecorder)
    async with loaded(folders["llama"], "float32", sequences=2) as pair:
        said = [warning for warning in pair.info.warnings if "not permitted" in warning]
        assert [warning.split(":")[0] for warning in said] == [
            f"model {name}: forward passes are not recorded as CUDA graphs".split(":")[0] for name in "ab"
        ]
        assert pair.a._cache.graphs is None  # type: ignore[attr-defined]
        await equal(pair, cases(pair, await typical_divergences(pair), 2, seed=1), 1e-5)


class _WrongRecorder(TapeRecorder):
    """Replays what it saw, whatever is given."""

    def record(self, run: Any) -> Any:
        run()
        return lambda: None


async def test_a_recording_that_repeats_something_else_is_found_out(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_pair, "recorder_on", lambda device: _WrongRecorder)
    async with loaded(folders["llama"], "float32", sequences=2) as pair:
        assert len([warning for warning in pair.info.warnings if "of their spread" in warning]) == 2
        assert pair.a._cache.graphs is None  # type: ignore[attr-defined]


async def test_memory_that_runs_out_while_recording_ends_recording_alone(
    folders: Folders, taped: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with loaded(folders["llama"], "float32", sequences=4) as pair:
        record, left = TapeRecorder.record, [3]

        def failing(recorder: TapeRecorder, run: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("simulated")
            return record(recorder, run)

        monkeypatch.setattr(TapeRecorder, "record", failing)
        jobs = cases(pair, await typical_divergences(pair), 6, seed=2)
        with caplog.at_level(logging.WARNING, "rl_onoff.worker"):
            await equal(pair, jobs, 1e-5)
        assert any("simulated" in record.message for record in caplog.records)
        assert any(recorded(side._cache).failure for side in (pair.a, pair.b))  # type: ignore[attr-defined]


async def test_recordings_can_be_left_out(folders: Folders, taped: None) -> None:
    async with loaded(folders["llama"], "float32", sequences=2, options={"graphs": False}) as pair:
        assert pair.a._cache.graphs is None  # type: ignore[attr-defined]


@torch.inference_mode()
def test_of_many_shapes_the_last_used_are_kept(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][0], dtype=torch.float32)
    cache, slots = SlotCache(model, 4, tiny.MAX_LEN, make_recorder=TapeRecorder), [Slot(i) for i in range(4)]
    for count, replays in ((1, 0), (1, 1), (2, 1), (2, 2), (1, 3), (4, 3), (4, 4), (2, 4), (1, 4), (1, 5)):
        cache.forward(slots[:count], [[7]] * count, [3] * count, [1] * count)
        assert recorded(cache).replays == replays


def test_passes_are_filled_up_to_few_shapes() -> None:
    made = graphs.Graphs(TapeRecorder, lambda shape, given: given, torch.device("cpu"))
    assert [made.filled(1, tokens) for tokens in (1, 2, 3, 5, 17, 32, 33)] == [1, 2, 4, 8, 32, 32, None]
    assert [made.filled(rows, 16) for rows in (4, 9, 16, 17)] == [16, 16, 16, None]
    assert made.filled(100, 2) == 2
    lengths = [graphs._length(end) for end in (1, 256, 257, 385, 513, 769, 1025, 1537)]
    assert lengths == [256, 256, 384, 512, 768, 1024, 1536, 2048]


def test_passes_that_look_at_results_are_found_before_one_is_recorded() -> None:
    """A recording that fails half-way leaves CUDA's allocator in disorder."""

    class Untouched(TapeRecorder):
        def record(self, run: Any) -> Any:
            raise AssertionError("recorded")

    def looks(shape: graphs.Shape, given: torch.Tensor) -> torch.Tensor:
        return torch.zeros(shape.rows, shape.tokens, 3) + given.max().item()

    made = graphs.Graphs(Untouched, looks, torch.device("cpu"))
    made.rehearses = True
    assert made.logits([1], [5], [[7, 7]], 256).tolist() == [[[7.0] * 3] * 2]
    assert made.failure is not None
    assert "looks at a result" in made.failure
    assert made.filled(1, 2) is None


@torch.inference_mode()
def test_the_scope_of_a_model_is_entered_for_what_python_runs_alone(folders: Folders) -> None:
    """peft takes longer to switch an adapter off than a GPU to compute a pass."""
    entered = []

    @contextmanager
    def scope() -> Iterator[None]:
        entered.append(1)
        yield

    model = AutoModelForCausalLM.from_pretrained(folders["llama"][0], dtype=torch.float32)
    cache = SlotCache(model, 1, tiny.MAX_LEN, scope=scope, make_recorder=TapeRecorder)
    for position in range(20):
        cache.forward([Slot(0)], [[7]], [position], [1])
    assert len(entered) == 2  # as it came, and recorded
    assert recorded(cache).replays == 19
