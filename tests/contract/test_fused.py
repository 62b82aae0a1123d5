"""Comparison without rows against comparison of rows: the same numbers, in bounded memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rl_onoff import divergence
from rl_onoff.errors import InternalError
from tests.contract import tiny
from tests.contract.conftest import Case, spec
from workers import fused, scoring
from workers.backends import load_pair
from workers.backends.base import ComparesItself
from workers.host import answer
from workers.wire import Compare, Done, ModelSpec, Values, WorkerSpec

NAMES = [*divergence.MEASURES, "renyi:0.5", "topk_overlap:5"]


async def columns(frames: Any) -> dict[str, np.ndarray[Any, Any]]:
    found = [frame async for frame in frames]
    assert isinstance(found[-1], Done)
    values = [frame for frame in found if isinstance(frame, Values)]
    starts = [frame.start for frame in values]
    assert starts == np.cumsum([0, *(frame.logprobs_a.shape[0] for frame in values[:-1])]).tolist()
    joined = {name: np.concatenate([frame.measures[name].numpy() for frame in values]) for name in values[0].measures}
    for name in ("logprobs_a", "logprobs_b", "top1_agree"):
        joined[f"its {name}"] = np.concatenate([getattr(frame, name).numpy() for frame in values])
    return joined


def assert_alike(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=2e-5, err_msg=name)


async def test_fused_equals_the_row_streams(case: Case, monkeypatch: Any) -> None:
    """Every architecture, chunks that do not divide the solution, one chunk per pass and several."""
    monkeypatch.setattr(scoring, "MAX_POSITIONS", 25)
    monkeypatch.setattr(fused, "CHUNK_BYTES", 10 * 4 * tiny.COLUMNS)
    assert isinstance(case.pair, ComparesItself)
    assert case.pair.a.head is not None  # type: ignore[attr-defined]
    ids = case.prompt(90)
    for temperature in (1.0, 0.7):
        job = Compare(ids, 20, ids, 20, NAMES, temperature)
        assert_alike(await columns(answer(case.pair, job)), await columns(scoring.compare(case.pair, job)))


async def test_many_jobs_of_all_lengths_at_once(llama: Case) -> None:
    prompts = [llama.prompt(5 + 7 * i, seed=i) for i in range(12)]
    jobs = [Compare(ids, 4, ids, 4, ["js", "kl_ab"]) for ids in prompts]
    alone = [await columns(answer(llama.pair, job)) for job in jobs]
    together = await asyncio.gather(*(columns(answer(llama.pair, job)) for job in jobs))
    for got, want in zip(together, alone, strict=True):
        assert_alike(got, want)


async def test_half_precision_logits_are_compared_as_they_are(tmp_path: Path) -> None:
    a, b = tiny.write_pair(tmp_path, "llama")
    sides = [ModelSpec(n, str(path), dtype="bfloat16", device="cpu") for n, path in (("a", a), ("b", b))]
    pair = load_pair(WorkerSpec("p", "hf", "", *sides, sequences=2, options={"float32_head": False}))
    ids = list(range(2, 60))
    job = Compare(ids, 9, ids, 9, ["js", "kl_ab", "top1_agree"])
    got, want = await columns(answer(pair, job)), await columns(scoring.compare(pair, job))
    await pair.close()
    assert_alike(got, want)


async def test_an_adapter_is_on_for_b_alone(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tiny.write_model(tmp_path / "a", "llama", seed=1)
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(
        tmp_path / "lora", save_embedding_layers=False
    )
    sides = [ModelSpec("a", str(folder), device="cpu"), ModelSpec("b", adapter=str(tmp_path / "lora"), device="cpu")]
    pair = load_pair(WorkerSpec("p", "hf", "", *sides, sequences=2))
    ids = list(range(2, 60))
    job = Compare(ids, 9, ids, 9, ["js", "kl_ab"])
    assert pair.a.head is not None  # type: ignore[attr-defined]
    got, want = await columns(answer(pair, job)), await columns(scoring.compare(pair, job))
    await pair.close()
    assert_alike(got, want)
    assert want["js"].max() > 1e-3


async def test_a_model_that_cannot_be_taken_apart_is_compared_by_its_rows(llama: Case, monkeypatch: Any) -> None:
    ids = llama.prompt(40)
    job = Compare(ids, 20, ids, 20, ["js"])
    want = await columns(answer(llama.pair, job))
    monkeypatch.setattr(llama.pair.a, "head", None)
    assert_alike(await columns(answer(llama.pair, job)), want)


async def test_nan_is_an_error_not_a_number(tmp_path: Path) -> None:
    a, b = tiny.write_pair(tmp_path, "llama")
    pair = load_pair(spec(a, b, sequences=2))
    with torch.no_grad():
        pair.a.head.linear.weight[7] = float("nan")  # type: ignore[attr-defined]
    ids = list(range(2, 40))
    with pytest.raises(InternalError, match="NaN"):
        await columns(answer(pair, Compare(ids, 9, ids, 9, ["js"])))
    await pair.close()


async def test_merged_ends_count_as_one_token(case: Case, monkeypatch: Any) -> None:
    """Against rows whose merged columns were added up; in chunks, at a temperature, over a merged token too."""
    monkeypatch.setattr(scoring, "MAX_POSITIONS", 25)
    ids = [*case.prompt(60), 7, 9, 1, 7]
    names, merge = ["js", "kl_ab", "delta_logp", "entropy_b", "rank_of_b_in_a"], [7, 1, 9]
    job = Compare(ids, 20, ids, 20, names, 0.8, merge)
    got = await columns(answer(case.pair, job))
    assert_alike(got, await columns(scoring.compare(case.pair, job)))
    rows = []
    for model in (case.plain_a, case.plain_b):
        row = (case.plain_rows(model, ids)[19:-1].double() / 0.8).log_softmax(-1)
        row[:, 7] = row[:, merge].logsumexp(-1)
        row[:, [1, 9]] = -torch.inf
        rows.append(row.numpy())
    scored = np.array([7 if token in merge else token for token in ids[20:]])
    want = divergence.compute(*rows, names, scored)
    for name in names:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=2e-5, err_msg=name)


async def test_rows_of_the_backend_are_left_as_they_were(tmp_path: Path) -> None:
    """Tables hand out rows they keep: merging must not change them."""
    table = {"tokens": ["a", "b", "c", "<eos>"], "eos": "<eos>", "rows": {"": {"a": 0.4, "b": 0.3, "c": 0.3}}}
    other = table | {"rows": {"": {"a": 0.4, "b": 0.1, "<eos>": 0.5}}}
    for name, document in (("a", table), ("b", other)):
        (tmp_path / name).write_text(json.dumps(document))
    sides = [ModelSpec(name, str(tmp_path / name)) for name in "ab"]
    pair = load_pair(WorkerSpec("p", "table", "", *sides))
    plain = Compare([0, 1, 2], 1, [0, 1, 2], 1, ["tv"])
    before = await columns(answer(pair, plain))
    merged = await columns(answer(pair, Compare([0, 1, 2], 1, [0, 1, 2], 1, ["tv"], 1.0, [1, 2, 3])))
    assert merged["tv"] == pytest.approx([0.0, 0.0], abs=1e-7)  # 0.6 on the merged token in both
    after = await columns(answer(pair, plain))
    assert after["tv"].tolist() == before["tv"].tolist() == pytest.approx([0.5, 0.5])


async def test_the_floor_is_the_distance_to_ones_own_rounded_logits(case: Case) -> None:
    ids = case.prompt(50)
    job = Compare(ids, 20, ids, 20, ["js", "kl_ab"], floor="bfloat16_logits", floor_side="b")
    got = await columns(answer(case.pair, job))
    with torch.inference_mode():
        logits = case.plain_b(torch.tensor([ids])).logits[0, 19:49, : case.vocab_size]
    rows = [rounded.double().log_softmax(-1).numpy() for rounded in (logits, logits.bfloat16())]
    want = divergence.compute(*rows, ["js", "kl_ab"])
    np.testing.assert_allclose(got["js"], want["js"], rtol=0.05, atol=1e-7)
    assert 1e-7 < got["js"].mean() < 1e-3


async def test_the_floor_of_passes_is_the_distance_between_two_ways_to_compute_a_row(case: Case) -> None:
    ids = case.prompt(90)
    names = ["js", "kl_ab", "delta_logp", "renyi:2", "topk_overlap:3"]
    got = await columns(answer(case.pair, Compare(ids, 20, ids, 20, names, 0.5, floor="pass_shape")))
    assert got["js"].shape == (70,)
    assert got["js"].max() < 1e-6
    assert np.abs(got["delta_logp"]).max() < 1e-3
    assert np.abs(got["renyi:2"]).max() < 1e-6
    assert got["topk_overlap:3"].mean() > 0.9
