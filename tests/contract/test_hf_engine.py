"""The engine and the cache under what goes wrong: failing passes, NaN, growth, cancellation, the end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig

from rl_onoff.errors import InternalError, InvalidField, LoadError, ShuttingDown, UnsupportedModel, WorkerLost
from tests.contract import tiny
from tests.contract.conftest import Case, spec
from tests.contract.test_backend import GREEDY, gap, tokens
from workers.backends import load_pair
from workers.backends.base import bulk
from workers.backends.hf.invariant import make_invariant
from workers.backends.hf.slots import SlotCache, _SlotLayer
from workers.host import answer
from workers.wire import Generate, SamplingParams, Score, SwitchGenerate


def cache(case: Case) -> SlotCache:
    held: SlotCache = case.pair.a._cache  # type: ignore[attr-defined]
    return held


async def rows_are_right(case: Case, ids: list[int]) -> None:
    want = case.plain_rows(case.plain_a, ids)
    async with case.pair.a.sequence() as sequence:
        assert gap(await sequence.rows(ids, 1), want) < 1e-5
        assert gap(await sequence.rows(ids[:-3], 1), want[:-3]) < 1e-5


async def test_a_prefix_is_computed_once(llama: Case) -> None:
    ids = llama.prompt(40)
    fed: list[int] = []
    model = llama.pair.a
    forward = model._cache.forward  # type: ignore[attr-defined]
    model._cache.forward = lambda slots, new, *rest: (fed.append(len(new[0])), forward(slots, new, *rest))[1]  # type: ignore[attr-defined]
    async with model.sequence() as sequence:
        for end in range(30, 41):
            await sequence.rows(ids[:end], end)
    async with model.sequence() as sequence:  # another sequence with the same prefix
        await sequence.rows(ids, 40)
    assert fed == [30] + [1] * 11


async def test_a_long_prefix_is_computed_in_chunks(llama: Case, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.backends.hf.model.PREFILL_CHUNK", 16)
    ids = llama.prompt(200)
    want = llama.plain_rows(llama.plain_a, ids)
    async with llama.pair.a.sequence() as sequence:
        assert gap(await sequence.rows(ids, 195), want[194:]) < 1e-5


async def test_a_growing_cache_keeps_what_it_holds(llama: Case, monkeypatch: Any) -> None:
    cache(llama)._bucket = 4
    ids = llama.prompt(120)
    want = llama.plain_rows(llama.plain_a, ids)
    capacities = set()
    async with llama.pair.a.sequence() as sequence:
        for end in range(10, 121):
            assert gap(await sequence.rows(ids[:end], end), want[end - 1 : end]) < 1e-5
            capacities.add(cache(llama).capacity)
    assert len(capacities) > 3


async def test_memory_that_runs_out_half_way_is_no_lasting_harm(llama: Case, monkeypatch: Any) -> None:
    cache(llama)._bucket = 4
    await rows_are_right(llama, llama.prompt(10))
    grow, left = _SlotLayer.grow, [2]

    def failing(layer: _SlotLayer, capacity: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("simulated")
        grow(layer, capacity)

    monkeypatch.setattr(_SlotLayer, "grow", failing)
    async with llama.pair.a.sequence() as sequence:
        with pytest.raises(torch.OutOfMemoryError):
            await sequence.rows(llama.prompt(100), 1)
    monkeypatch.setattr(_SlotLayer, "grow", grow)
    await rows_are_right(llama, llama.prompt(100))


async def test_a_pass_that_fails_is_forgotten(llama: Case, monkeypatch: Any) -> None:
    ids = llama.prompt(30)
    layer = cache(llama)._layers[2]
    update, calls = layer.update, [0]

    def failing(keys: torch.Tensor, values: torch.Tensor, *rest: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("simulated")
        return update(keys, values, *rest, **more)

    monkeypatch.setattr(layer, "update", failing)
    async with llama.pair.a.sequence() as sequence:
        await sequence.rows(ids[:10], 10)
        with pytest.raises(RuntimeError, match="simulated"):
            await sequence.rows(ids, 11)
        assert gap(await sequence.rows(ids, 5), llama.plain_rows(llama.plain_a, ids)[4:]) < 1e-5


async def test_nan_fails_its_own_job_and_stays_in_no_slot(llama: Case) -> None:
    """Every slot is poisoned once; the jobs that meet it fail, those after them do not."""
    jobs = [Generate("a", llama.prompt(8, i), 5, GREEDY, ignore_eos=True) for i in range(4)]
    wanted = [await tokens(llama, job) for job in jobs]
    with torch.inference_mode():
        for layer in cache(llama)._layers:
            layer.keys[:, :, :4] = float("nan")
    failed = await asyncio.gather(*(tokens(llama, job) for job in jobs), return_exceptions=True)
    assert any(isinstance(result, InternalError) for result in failed)
    for _ in range(4):
        await asyncio.gather(*(tokens(llama, job) for job in jobs), return_exceptions=True)
    assert [(await tokens(llama, job))[0] for job in jobs] == [want[0] for want in wanted]


@pytest.mark.parametrize("worth", [1, 1 << 40])
async def test_a_draw_that_fails_fails_alone(llama: Case, monkeypatch: Any, worth: int) -> None:
    """Also where draws are made side by side."""
    from workers import sampling

    def draw(rows: Any, params: SamplingParams, positions: Any) -> tuple[list[int], list[float]]:
        if params.seed == 2:
            raise RuntimeError("simulated")
        return sampling.draw(rows, params, positions)

    monkeypatch.setattr("workers.threads.WORTH", worth)
    monkeypatch.setattr("workers.threads.processors", lambda: 3)
    monkeypatch.setattr("workers.backends.hf.calls.draw", draw)
    policy = {"kind": "always_a"}
    jobs = [SwitchGenerate(llama.prompt(5), 10, SamplingParams(seed=i), policy, ignore_eos=True) for i in range(4)]
    results = await asyncio.gather(*(tokens(llama, job) for job in jobs), return_exceptions=True)
    assert [isinstance(result, RuntimeError) for result in results] == [False, False, True, False]


async def test_a_context_is_never_exceeded(llama: Case) -> None:
    with pytest.raises(InvalidField, match="256 in all at most"):
        await tokens(llama, Generate("a", llama.prompt(250), 7, GREEDY))
    got, _, _ = await tokens(llama, Generate("a", llama.prompt(250), 6, GREEDY, ignore_eos=True))
    assert got == llama.plain_greedy(llama.plain_a, llama.prompt(250), 6)


async def test_a_long_prefill_counts_every_pass(llama: Case, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.backends.hf.model.PREFILL_CHUNK", 16)
    async with llama.pair.a.sequence() as sequence:
        await sequence.rows(llama.prompt(100), 100)
        assert sequence.forwards == 7


async def test_calls_at_the_end_are_refused(folders: dict[str, Any]) -> None:
    pair = load_pair(spec(*folders["llama"]))
    async with pair.a.sequence() as sequence:
        pending = [asyncio.create_task(sequence.rows([3] * tiny.MAX_LEN, 1)) for _ in range(1)]
        await asyncio.sleep(0)
        await pair.close()
        with pytest.raises(ShuttingDown):
            await sequence.rows([3], 1)
        results = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(result, ShuttingDown) or len(result) == tiny.MAX_LEN for result in results)


async def test_nan_amid_a_long_prompt_fails_at_once_and_stays_in_no_slot(
    folders: dict[str, Any], monkeypatch: Any
) -> None:
    """Nobody looks at the rows of such a pass; whoever has the slot next would meet it."""
    monkeypatch.setattr("workers.backends.hf.model.PREFILL_CHUNK", 16)
    pair: Any = load_pair(spec(*folders["llama"], sequences=1))
    try:
        with torch.inference_mode():
            pair.a._cache._model.get_input_embeddings().weight[90] = float("nan")
        async with pair.a.sequence() as sequence:
            with pytest.raises(InternalError, match="NaN"):
                await sequence.rows([5, 6, 90, *[7] * 200], 200)
            assert pair.steps == 1
        async with pair.a.sequence() as sequence:
            await sequence.rows([8, 9, 10], 1)
    finally:
        await pair.close()


async def test_infinite_logits_are_refused_in_every_kind(folders: dict[str, Any]) -> None:
    pair: Any = load_pair(spec(*folders["llama"]))
    try:
        with torch.inference_mode():
            pair.a._cache._model.get_output_embeddings().weight[20] *= 1e38
            pair.a._cache._model.get_output_embeddings().weight[20] *= 1e38
        for kind in ("logits", "logprobs", "probs"):
            with pytest.raises(InternalError, match="NaN"):
                async for _ in answer(pair, Score("a", [3, 4, 5, 6, 7, 8], 1, kind)):
                    pass
    finally:
        await pair.close()


async def test_generation_goes_on_beside_long_computations(llama: Case) -> None:
    """A few of them a token, however many there are: it does not wait for all."""
    computed = [0]

    @bulk
    def long() -> None:
        time.sleep(0.01)
        computed[0] += 1

    engine: Any = llama.pair.a.engine  # type: ignore[attr-defined]
    waiting = [asyncio.create_task(engine.compute(long)) for _ in range(300)]
    await asyncio.sleep(0)
    await tokens(llama, Generate("a", llama.prompt(8), 10, GREEDY, ignore_eos=True))
    assert computed[0] < 200
    await asyncio.gather(*waiting)
    assert computed[0] == 300


def test_attention_that_counts_from_the_end_of_the_keys_is_refused(tmp_path: Path) -> None:
    """As GPT-Neo's local layers do: beyond their window rows would be wrong, and only there."""
    config = GPTNeoConfig(
        vocab_size=tiny.COLUMNS, hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
        max_position_embeddings=512, window_size=256, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="local attention"):
        load_pair(spec(tmp_path, tmp_path))


@pytest.mark.parametrize("where", ["a pass", "a computation"])
async def test_an_accelerator_that_failed_ends_the_worker(folders: dict[str, Any], where: str) -> None:
    """Every later call of it would fail: nobody is left waiting, and the process learns that it is over."""

    def failing(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    pair: Any = load_pair(spec(*folders["llama"]))
    lost = asyncio.create_task(pair.until_lost())
    async with pair.a.sequence() as a, pair.b.sequence() as b:
        await a.rows([3, 4], 1)
        if where == "a pass":
            pair.a._cache.forward = failing
            calls = [a.rows([3, 4, 5], 1), b.rows([3, 4, 5], 1), pair.compute(len, [])]
        else:
            calls = [pair.compute(failing), a.rows([3, 4, 5], 1), b.rows([3, 4, 5], 1)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(result, WorkerLost) for result in results)
        assert not any(isinstance(result, torch.AcceleratorError) for result in results)
        error = await asyncio.wait_for(lost, 10)
        assert isinstance(error, WorkerLost)
        assert error.retryable
        with pytest.raises(WorkerLost):
            await a.rows([3, 4, 5], 1)
    await pair.close()


async def test_rows_of_two_devices_meet_on_one(llama: Case, monkeypatch: Any) -> None:
    model: Any = llama.pair.b
    assert model._meeting == torch.device("cpu")
    monkeypatch.setattr(model, "_meeting", torch.device("meta"))
    for raw in (False, True):
        assert model._rows(torch.zeros(2, tiny.COLUMNS), raw).device.type == "meta"


def test_a_pair_that_does_not_fit_is_a_load_error(folders: dict[str, Any], monkeypatch: Any) -> None:
    def failing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr("workers.backends.hf.pair.noise_floors", failing)
    with pytest.raises(LoadError, match="does not fit"):
        load_pair(spec(*folders["llama"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_invariant_products_do_not_depend_on_what_is_beside_them(dtype: torch.dtype) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(512, 768), torch.nn.Linear(768, 96)).to(dtype)
    plain = torch.nn.Sequential(torch.nn.Linear(512, 768), torch.nn.Linear(768, 96)).to(dtype)
    plain.load_state_dict(layers.state_dict())
    make_invariant(layers)
    make_invariant(layers)
    with torch.inference_mode():
        rows = torch.randn(3, 47, 512, dtype=dtype)
        together = layers(rows)
        for count in (1, 2, 5, 16, 17, 33):
            assert torch.equal(layers(rows[1, 7 : 7 + count]), together[1, 7 : 7 + count])
        torch.testing.assert_close(together, plain(rows), rtol=0.02, atol=0.005)
