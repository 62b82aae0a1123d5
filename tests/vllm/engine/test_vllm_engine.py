"""What the vLLM backend promises beyond the suite of all backends: its cache, its engines' ends, adapters, refusals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from rl_onoff.errors import (
    ConfigurationError,
    InternalError,
    InvalidField,
    LoadError,
    PairMismatch,
    UnsupportedModel,
    WorkerLost,
)
from tests.contract import tiny
from tests.contract.across import writes_as_transformers
from tests.contract.conftest import Case, spec
from tests.contract.test_backend import GREEDY, TOLERANCE, gap, tokens
from tests.contract.test_lookahead import cases, equal, loaded, typical_divergences
from workers.backends import load_pair
from workers.host import answer
from workers.wire import Generate, ModelSpec, SamplingParams, SwitchGenerate, WorkerSpec

Folders = dict[str, tuple[Path, Path]]


def core(pair: Any, side: str = "a") -> Any:
    return getattr(pair, side)._engine.engine_core.engine_core


@contextmanager
def computed(pair: Any) -> Iterator[list[int]]:
    """Tokens of each pass of A, as vLLM schedules them."""
    scheduler, counts = core(pair).scheduler, []
    schedule = scheduler.schedule

    def counted(*args: Any) -> Any:
        output = schedule(*args)
        counts.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule = counted
    yield counts
    scheduler.schedule = schedule


async def test_a_prefix_is_computed_once_but_for_its_last_block(llama: Case) -> None:
    ids = llama.prompt(140)
    want = llama.plain_rows(llama.plain_a, ids)
    async with llama.pair.a.sequence() as sequence:
        with computed(llama.pair) as counts:
            await sequence.rows(ids[:139], 139)
            assert gap(await sequence.rows(ids, 140), want[139:]) < TOLERANCE
        assert counts == [139, 12]  # blocks of 32
        with computed(llama.pair) as counts:  # rows that lie in the cached prefix are computed, not made up
            assert gap(await sequence.rows(ids, 70), want[69:]) < TOLERANCE
            assert gap(await sequence.rows(ids, 1), want) < TOLERANCE
        assert counts == [140 - 64, 140]


async def test_engines_on_devices_of_their_own(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor's devices are its NUMA nodes; both engines get the one there is, each in a process of its own."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    worker = spec(*folders["llama"])
    a, b = (msgspec.structs.replace(model, device="cpu:0") for model in (worker.a, worker.b))
    pair: Any = load_pair(msgspec.structs.replace(worker, a=a, b=b))
    try:
        places = {
            core(pair, side).model_executor.collective_rpc(
                lambda _: (os.environ.get("CPU_VISIBLE_MEMORY_NODES"), os.getpid())
            )[0]
            for side in "ab"
        }
        assert [node for node, _ in places] == ["0", "0"]
        assert len({pid for _, pid in places} | {os.getpid()}) == 3
        assert "CPU_VISIBLE_MEMORY_NODES" not in os.environ
        await equal(pair, cases(pair, await typical_divergences(pair), 8, seed=5), 1e-5)
    finally:
        await pair.close()


def test_an_engines_graphs_are_hidden_from_the_next(llama: Case) -> None:
    """vLLM clears all it knows of while it measures those of a new engine. On a CPU there are none to lose."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    from workers.backends.vllm.start import _keep_graphs

    class Graphs:
        cleared = False

        def clear_graphs(self) -> None:
            self.cleared = True

    earlier, later = Graphs(), Graphs()
    CUDAGraphWrapper._all_instances.add(earlier)
    _keep_graphs()
    CUDAGraphWrapper._all_instances.add(later)
    CUDAGraphWrapper.clear_all_graphs()
    assert (earlier.cleared, later.cleared) == (False, True)


async def test_a_long_prefix_is_computed_in_chunks_beside_others(folders: Folders) -> None:
    options = {"engine": {"max_num_batched_tokens": 48}}
    async with loaded(folders["llama"], "float32", options=options) as pair:
        case = Case(pair, AutoModelForCausalLM.from_pretrained(folders["llama"][0], dtype=torch.float32), None)

        async def right(seed: int, start: int) -> None:
            ids = case.prompt(200, seed)
            async with pair.a.sequence() as sequence:
                assert gap(await sequence.rows(ids, start), case.plain_rows(case.plain_a, ids)[start - 1 :]) < TOLERANCE
                assert sequence.forwards >= 5

        await asyncio.gather(*(right(seed, start) for seed, start in enumerate((1, 5, 195, 200))))


async def test_sequences_that_are_preempted_go_on(folders: Folders) -> None:
    options = {"engine": {"num_gpu_blocks_override": 11}}  # one of them at full length, and little more
    jobs = [Generate("a", [3 + i] * 20, 200, SamplingParams(seed=i), ignore_eos=True) for i in range(4)]
    switched = SwitchGenerate([9] * 20, 150, SamplingParams(seed=9), {"kind": "always_a"}, ignore_eos=True)
    async with loaded(folders["llama"], "float32", options=options) as pair:
        case = Case(pair, None, None)
        alone = [(await tokens(case, job))[0] for job in (*jobs, switched)]
        preempt, preempted = core(pair).scheduler._preempt_request, []
        core(pair).scheduler._preempt_request = lambda *a, **k: (preempted.append(a), preempt(*a, **k))[1]
        together = await asyncio.gather(*(tokens(case, job) for job in (*jobs, switched)))
        assert preempted
    assert [result[0] for result in together] == alone


async def test_a_context_can_be_filled_and_never_exceeded(llama: Case) -> None:
    got, _, _ = await tokens(llama, Generate("a", llama.prompt(250), 6, GREEDY, ignore_eos=True))
    assert got == llama.plain_greedy(llama.plain_a, llama.prompt(250), 6)
    job = SwitchGenerate(llama.prompt(250), 6, GREEDY, {"kind": "always_a"}, ignore_eos=True)
    assert (await tokens(llama, job))[0] == got


@pytest.mark.parametrize(
    "ids",
    [[], [-1], [3, tiny.VOCAB_SIZE], [3, 2**40], [3] * (tiny.MAX_LEN - 4)],
    ids=["none", "-1", "V", "huge", "long"],
)
async def test_what_no_engine_may_see_never_gets_there(llama: Case, ids: list[int]) -> None:
    with computed(llama.pair) as counts:
        for job in (Generate("a", ids, 5, GREEDY), SwitchGenerate(ids, 5, GREEDY, {"kind": "always_a"})):
            with pytest.raises(InvalidField):
                await tokens(llama, job)
    assert counts == []


async def test_a_cancelled_request_frees_the_engine(llama: Case) -> None:
    pool = core(llama.pair).scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    endless = Generate("a", llama.prompt(8), 240, GREEDY, ignore_eos=True)
    async with aclosing(answer(llama.pair, endless)) as frames:  # type: ignore[type-var]
        await anext(frames)
        assert pool.get_num_free_blocks() < free
    async with llama.pair.a.sequence() as sequence:
        draft = asyncio.create_task(sequence.draft(llama.prompt(8), 240, GREEDY, frozenset()))
        await asyncio.sleep(0.05)
        draft.cancel()
    async with asyncio.timeout(5):
        while core(llama.pair).scheduler.has_unfinished_requests() or pool.get_num_free_blocks() != free:
            await asyncio.sleep(0.01)
    worker = core(llama.pair).model_executor.driver_worker.worker
    assert worker._onoff_kept == {}


async def test_an_engine_that_fails_ends_everything_it_held(llama: Case) -> None:
    jobs = [Generate(side, llama.prompt(8, i), 200, GREEDY, ignore_eos=True) for i, side in enumerate("aabb")]  # type: ignore[arg-type]
    running = [asyncio.create_task(tokens(llama, job)) for job in jobs]
    lost = asyncio.create_task(llama.pair.until_lost())  # type: ignore[attr-defined]
    await asyncio.sleep(0.05)
    assert not lost.done()

    def fail(*_: Any) -> None:
        raise RuntimeError("simulated")

    core(llama.pair, "b").model_executor.execute_model = fail
    async with asyncio.timeout(10):
        assert isinstance(await lost, WorkerLost)
        results = await asyncio.gather(*running, return_exceptions=True)
        assert [type(result) for result in results] == [WorkerLost] * 4
        with pytest.raises(WorkerLost):
            await tokens(llama, jobs[0])


async def test_nan_fails_its_jobs_and_nothing_else(llama: Case) -> None:
    want = await tokens(llama, Generate("b", llama.prompt(8), 5, GREEDY, ignore_eos=True))
    norm = core(llama.pair).model_executor.driver_worker.worker.model_runner.model.model.norm
    kept = norm.weight.detach().clone()
    norm.weight.data.fill_(float("nan"))
    for job in (
        Generate("a", llama.prompt(8), 5, GREEDY),
        SwitchGenerate(llama.prompt(8), 5, GREEDY, {"kind": "always_a"}),
    ):
        with pytest.raises(InternalError, match="NaN"):
            await tokens(llama, job)
    assert await tokens(llama, Generate("b", llama.prompt(8), 5, GREEDY, ignore_eos=True)) == want
    norm.weight.data.copy_(kept)
    job = Generate("a", llama.prompt(8), 5, GREEDY, ignore_eos=True)
    assert (await tokens(llama, job))[0] == llama.plain_greedy(llama.plain_a, llama.prompt(8), 5)


async def test_seeds_write_what_they_write_on_transformers(folders: Folders) -> None:
    await writes_as_transformers(folders["qwen3"])


def adapter(base: Path, folder: Path, *targets: str) -> Any:
    """A LoRA adapter written to `folder`, and the weights of `base` merged with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", *targets], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned.merge_and_unload().eval()


async def test_an_adapter_equals_merged_weights_in_one_engine(folders: Folders, tmp_path: Path) -> None:
    base = folders["llama"][0]
    merged = adapter(base, tmp_path / "adapter")
    models = ModelSpec("a", str(base)), ModelSpec("b", adapter=str(tmp_path / "adapter"))
    pair = load_pair(WorkerSpec("p", "vllm", "", *models))
    case = Case(pair, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), merged)
    assert pair.a._engine is pair.b._engine  # type: ignore[attr-defined]
    assert pair.info.a.fingerprint != pair.info.b.fingerprint

    async def right(side: str, seed: int) -> None:
        model, plain = (pair.a, case.plain_a) if side == "a" else (pair.b, case.plain_b)
        ids = case.prompt(50, seed)
        async with model.sequence() as sequence:
            assert gap(await sequence.rows(ids, 1), case.plain_rows(plain, ids)) < TOLERANCE
        greedy, _, _ = await tokens(case, Generate(side, ids, 20, GREEDY, ignore_eos=True))  # type: ignore[arg-type]
        assert greedy == case.plain_greedy(plain, ids, 20)

    ids = case.prompt(50)
    assert gap(case.plain_rows(case.plain_a, ids), case.plain_rows(case.plain_b, ids)) > 0.1
    await asyncio.gather(*(right(side, i // 2) for i, side in enumerate("abababab")))  # the same ids for both
    await equal(pair, cases(pair, await typical_divergences(pair), 12, seed=6), 1e-5)
    await pair.close()


def test_an_adapter_of_the_output_embedding_is_refused(folders: Folders, tmp_path: Path) -> None:
    base = folders["llama"][0]
    adapter(base, tmp_path, "lm_head")
    with pytest.raises(UnsupportedModel, match=r"it changes .*lm_head.*; merge it"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", str(base)), ModelSpec("b", adapter=str(tmp_path))))


async def test_half_precision_models_compute_their_logits_in_float32(folders: Folders) -> None:
    async with loaded(folders["llama"], "bfloat16") as pair, pair.a.sequence() as sequence:
        logits = await sequence.rows([3, 4, 5, 6], 1, logits=True)
        assert pair.info.a.dtype == "bfloat16"
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


def test_what_cannot_be_served_is_named(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    for options, message in (
        ({"motors": {}}, "options of pair p: Object contains unknown field `motors`"),
        ({"engine": {"max_model_len": 9}}, "engine: max_model_len cannot be set here"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_pair(spec(a, b, options=options))
    with pytest.raises(LoadError, match="nowhere"):
        load_pair(spec(a, tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="vLLM runs on cpu here"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", str(a), device="cuda:1"), ModelSpec("b", str(b))))
    with pytest.raises(ConfigurationError, match="dtype must be auto or one of"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", str(a), dtype="float64"), ModelSpec("b", str(b))))
    with pytest.raises(LoadError, match="cannot load the adapter"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", str(a)), ModelSpec("b", adapter=str(tmp_path))))
    with pytest.raises(LoadError, match="vLLM cannot load model a"):
        load_pair(spec(a, b, options={"engine": {"nonsense": 1}}))


def test_tokenizers_that_differ_are_refused_before_any_engine(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    for file in b.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    document = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(document.replace('"A": 35', '"A": 36').replace('"B": 36', '"B": 35', 1))
    with pytest.raises(PairMismatch):
        load_pair(spec(a, tmp_path))
