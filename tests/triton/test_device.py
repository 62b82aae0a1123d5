"""The GPU's loops against the processor's, the float64 reference and array code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rl_onoff import divergence
from workers import comparison, device, judge, kernels, measures, sampling
from workers.backends.hf import calls, engine
from workers.comparison import Rows
from workers.triton_kernels import PART
from workers.wire import Compare, SamplingParams

DISTANCES = ["js", "kl_ab", "kl_ba", "tv", "hellinger", "renyi:0.5", "renyi_ba:2"]
ALL = [*divergence.MEASURES, "renyi:0.5", "renyi_ba:2", "topk_overlap:3"]


def logits(seed: int, count: int, vocab_size: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed))


def reference(a: torch.Tensor, b: torch.Tensor, tokens: list[int], names: list[str]) -> dict[str, Any]:
    rows = (row.double().log_softmax(-1) for row in (a, b))
    return divergence.compute(*rows, names, torch.tensor(tokens))


@pytest.mark.parametrize("vocab_size", [2, 287, 1024, PART, 2 * PART + 77])
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.3, 3.0])
def test_every_measure_equals_the_reference(vocab_size: int, distance: float) -> None:
    a = logits(1, 4, vocab_size)
    b = a + distance * logits(2, 4, vocab_size, 1.0)
    tokens = [0, 1, vocab_size - 1, vocab_size // 2]
    want = reference(a, b, tokens, ALL)
    for name, got in device.compare(a, b, ALL, tokens).measures.items():
        loose = name in ("tv", "hellinger") or name not in DISTANCES
        np.testing.assert_allclose(got, want[name], rtol=5e-5, atol=1e-6 if loose else 2e-12, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_as_on_the_processor(dtype: torch.dtype, temperature: float) -> None:
    """Whatever is excluded, tied, narrower than its row, or in half precision."""
    a, b = (logits(seed, 6, PART + 500, 8.0).to(dtype) for seed in (3, 4))
    a[:, ::5] = -math.inf
    b[:3, ::7] = -math.inf
    a[4], b[5] = a[4].round(), a[5]
    tokens, size = [0, 5, 7, 1, 2, 3], PART + 321
    want = comparison.compare(
        *(Rows.of(row.view(torch.uint16).numpy() if dtype == torch.bfloat16 else row.numpy()) for row in (a, b)),
        ALL,
        tokens,
        vocab_size=size,
        temperature=temperature,
    )
    found = device.compare(a, b, ALL, tokens, vocab_size=size, temperature=temperature)
    for name, got in found.measures.items():
        np.testing.assert_allclose(got, want.measures[name], rtol=3e-5, atol=3e-6, err_msg=name)
    np.testing.assert_allclose(found.logprobs_a, want.logprobs_a, rtol=1e-6)
    np.testing.assert_allclose(found.logprobs_b, want.logprobs_b, rtol=1e-6)
    assert found.top1_agree.tolist() == want.top1_agree.tolist()
    for name in ("rank_of_a_in_b", "rank_of_b_in_a", "topk_overlap:3"):
        assert found.measures[name].tolist() == want.measures[name].tolist()
    for name in (*DISTANCES, "delta_logp"):
        assert found.measures[name][5] == want.measures[name][5]
    assert np.isinf(found.measures["kl_ab"][:3]).all()


@pytest.mark.parametrize("temperature", [0.7, 0.1, 2.5])
def test_digits_are_kept_at_any_temperature(temperature: float) -> None:
    a = logits(1, 3, PART + 77, 3.0)
    b = a + 1e-4 * logits(2, 3, PART + 77, 1.0)
    names = ["js", "kl_ab", "kl_ba", "top1_agree", "rank_of_b_in_a"]
    rows = [(row.double() / temperature).log_softmax(-1).numpy() for row in (a, b)]
    want = divergence.compute(*rows, names, [0, 1, 2])
    for name, got in device.compare(a, b, names, [0, 1, 2], temperature=temperature).measures.items():
        np.testing.assert_allclose(got, want[name], rtol=1e-4, err_msg=name)


def test_equal_rows_differ_by_exactly_nothing() -> None:
    a = logits(7, 3, 2 * PART + 5, 8.0)
    a[:, ::5] = -math.inf
    found = device.compare(a, a.clone(), [*DISTANCES, "delta_logp", "rank_of_b_in_a"], [1, 2, 3]).measures
    for name in (*DISTANCES, "delta_logp"):
        assert found[name].tolist() == [0.0] * 3, name
    assert found["rank_of_b_in_a"].tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy of inf - inf
def test_disjoint_supports_and_rows_that_are_none() -> None:
    a, b = torch.full((4, 3000), -math.inf), torch.full((4, 3000), -math.inf)
    a[:, 7], b[:, 2999] = 1.0, 3.0
    a[1, 3], b[2, 5] = math.nan, math.inf
    b[3] = -math.inf
    found = device.compare(a, b, [*DISTANCES, "delta_logp", "top1_agree"], [7] * 4).measures
    assert found["js"][0] == math.log(2)
    assert found["tv"][0] == found["hellinger"][0] == 1.0
    assert found["kl_ab"][0] == found["kl_ba"][0] == found["renyi:0.5"][0] == found["renyi_ba:2"][0] == math.inf
    assert found["delta_logp"][0] == -math.inf
    assert found["top1_agree"][0] == 0
    assert all(np.isnan(found[name][1:]).all() for name in DISTANCES)


def test_a_row_does_not_depend_on_its_neighbours_or_on_what_else_is_asked() -> None:
    a, b = logits(8, 5, PART + 9).log_softmax(-1), logits(9, 5, PART + 9).log_softmax(-1)
    together = judge.measure(a, b, ["js", "hellinger", "rank_of_b_in_a"])
    for i in range(5):
        assert judge.measure(a[i : i + 1], b[i : i + 1], ["js"])["js"][0] == together["js"][i]


def test_no_rows() -> None:
    nothing = torch.empty(0, 50)
    assert device.compare(nothing, nothing, ["js", "renyi:2", "topk_overlap:2"], []).measures["js"].tolist() == []
    assert device.draw(nothing, [], [], []) == ([], [])


def test_merged_end_tokens() -> None:
    a, b = logits(10, 3, 400), logits(11, 3, 400)
    job = Compare(
        a_ids=[1, 2, 3, 4],
        a_start=1,
        b_ids=[1, 2, 3, 4],
        b_start=1,
        measures=["js", "kl_ab", "entropy_a"],
        temperature=0.7,
        merge=[3, 9, 20],
    )
    before = a.clone()
    found = measures.values(a, b, job, 0, 390)
    want = measures.values(Rows.of(a.numpy().copy()), Rows.of(b.numpy().copy()), job, 0, 390)
    assert (found.kernel, want.kernel) == (device.KERNEL, measures.KERNEL)
    for name, column in found.measures.items():
        np.testing.assert_allclose(column.numpy(), want.measures[name].numpy(), rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(found.logprobs_a.numpy(), want.logprobs_a.numpy(), rtol=1e-6)
    assert torch.equal(a, before)


@pytest.mark.parametrize("vocab_size", [3, 1000, PART + 1027])
def test_draws_are_those_of_the_processor(vocab_size: int) -> None:
    rows = logits(12, 16, vocab_size).log_softmax(-1)
    rows[3, 1:] = -math.inf
    seeds = [0, 1, 2**32 + 5, 2**63 - 11] * 4
    temperatures = [0.3, 1.0, 1.5, 2.0] * 4
    places = [i * 1000 for i in range(16)]
    tokens, gaps = device.draw(rows, temperatures, seeds, places)
    for i in range(16):
        (token,), (gap,) = kernels.draw_rows(rows[i : i + 1].numpy(), temperatures[i], seeds[i], np.array([places[i]]))
        assert tokens[i] == token
        assert gaps[i] == pytest.approx(gap * temperatures[i], rel=1e-9)


def test_requests_of_every_kind_are_drawn_together() -> None:
    rows = logits(13, 6, 500).log_softmax(-1)
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8, seed=3),
        SamplingParams(temperature=1.2, top_p=0.8, seed=4),
        SamplingParams(temperature=0.7, top_k=5, seed=5),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, min_p=0.1, seed=6),
    ]
    tokens, gaps = sampling.draw_each(rows, params, range(6))
    for i, one in enumerate(params):
        (token,), (gap,) = sampling.draw_by_arrays(rows[i : i + 1], one, [i])
        assert tokens[i] == token
        assert gaps[i] == pytest.approx(gap, rel=1e-9)
        assert sampling.draw(rows[i : i + 1], one, [i]) == ([token], [pytest.approx(gap, rel=1e-9)])


def test_the_loops_are_tried_before_they_are_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device.works.cache_clear()
    assert device.works("cpu")
    right = device.draw
    monkeypatch.setattr(device, "draw", lambda *given: ([0, 0], right(*given)[1]))
    device.works.cache_clear()
    assert not device.works("cpu")
    assert "results on cpu are off" in caplog.text

    def no_compiler(*given: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(device, "_compare", no_compiler)
    device.works.cache_clear()
    assert not device.works("cpu")
    assert "Failed to find C compiler" in caplog.text
    device.works.cache_clear()


def test_a_failing_device_fails_the_calls_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*given: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "look_together", lost)
    asked = [calls.RowsCall(None, None, [1, 2], 1, False, None) for _ in range(2)]  # type: ignore[arg-type]
    monkeypatch.setattr(device, "reaches", lambda _: True)
    settled = engine._absorbed(asked, [torch.zeros(1, 5), torch.zeros(1, 5)])
    assert all("illegal memory access" in str(error) for _, error in settled)
