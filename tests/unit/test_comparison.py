"""The kernel of all measures against the reference, scipy and arithmetic of fifty digits."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from rl_onoff import divergence
from workers.comparison import Rows, compare
from workers.measures import values
from workers.wire import Compare

DISTANCES = ["js", "kl_ab", "kl_ba", "tv", "hellinger", "renyi:0.5", "renyi:1", "renyi:3", "renyi_ba:0.3", "renyi_ba:2"]
ALL = [*divergence.MEASURES, *DISTANCES[5:], "topk_overlap:3"]


def logits(seed: int, count: int, vocab_size: int, scale: float = 2.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).normal(size=(count, vocab_size)) * scale).astype(np.float32)


def log_softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = rows.astype(np.float64)
    shifted = rows - rows.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def measured(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    tokens = np.arange(a.shape[0]) % a.shape[1]
    return compare(Rows.of(a), Rows.of(b), options.pop("measures", ALL), tokens, **options).measures


@pytest.mark.parametrize("vocab_size", [2, 287, 2048, 5001])
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.3, 3.0])
def test_every_measure_equals_the_reference(vocab_size: int, distance: float) -> None:
    a = logits(1, 20, vocab_size)
    b = a + np.float32(distance) * logits(2, 20, vocab_size, 1.0)
    want = divergence.compute(log_softmax(a), log_softmax(b), ALL, np.arange(20) % vocab_size)
    for name, got in measured(a, b).items():
        # A normaliser is known to 2e-7, which moves a log-probability by as much, and a distance by its square.
        loose = name in ("tv", "hellinger") or name not in DISTANCES
        np.testing.assert_allclose(got, want[name], rtol=5e-5, atol=1e-6 if loose else 2e-12, err_msg=name)


@pytest.mark.parametrize("vocab_size", [114_688, 128_256])
def test_wide_rows_whose_largest_entries_come_late(vocab_size: int) -> None:
    """Of blocks that are kept and blocks that are not, of none that is possible, each larger than those before."""
    a = logits(1, 4, vocab_size)
    a[1:] += np.linspace(0, 40, vocab_size, dtype=np.float32)
    b = a + np.float32(0.5) * logits(2, 4, vocab_size, 1.0)
    for rows in (a, b):
        rows[2, :5000] = -np.inf
        rows[3, 5000:] = -np.inf
    names = [name for name in ALL if not name.startswith("renyi")]
    want = divergence.compute(log_softmax(a), log_softmax(b), names, np.arange(4))
    for name, got in measured(a, b, measures=names).items():
        np.testing.assert_allclose(got, want[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("ahead", [8.0, 14.0, 30.0])
def test_log_probabilities_next_to_nothing_keep_their_digits(ahead: float) -> None:
    a = logits(1, 40, 5001, 0.5)
    tokens = np.arange(40) * 125
    a[np.arange(40), tokens] = np.float32(ahead)
    got = compare(Rows.of(a), Rows.of(a), ["js"], tokens).logprobs_a
    want = log_softmax(a)[np.arange(40), tokens]
    assert (got <= 0).all()
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=4e-15)


def test_rows_of_one_likely_token_are_exact_to_a_few_bits() -> None:
    """Its terms are nearly all there is, and so was their rounding: 2e-7 of JS."""
    a, noise = logits(3, 1000, 300, 6.0), logits(4, 1000, 300, 1.0)
    b = a + noise * np.logspace(-2, 1, 1000, dtype=np.float32)[:, None]
    want = divergence.compute(log_softmax(a), log_softmax(b), ["js", "tv"])
    got = measured(a, b, measures=["js", "tv"])
    np.testing.assert_allclose(got["js"], want["js"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(got["tv"], want["tv"], rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", [*ALL, "renyi_ba:1"])
def test_a_measure_is_the_same_alone_as_beside_others(name: str) -> None:
    a, b = logits(1, 20, 300), logits(2, 20, 300)
    together = measured(a, b, measures=[*ALL, "renyi_ba:1"])[name]
    assert not np.isnan(together).any()
    np.testing.assert_array_equal(measured(a, b, measures=[name])[name], together)


@pytest.mark.parametrize("order", [0.96, 0.99, 0.9999, 0.999999, 1.000001, 1.0001, 1.01, 1.04])
@pytest.mark.parametrize("distance", [0.1, 3.0])
def test_orders_of_renyis_near_one(order: float, distance: float) -> None:
    """Where float32 would divide its last bits by next to nothing."""
    a = logits(1, 6, 3000)
    b = a + np.float32(distance) * logits(2, 6, 3000, 1.0)
    names = [f"renyi:{order}", f"renyi_ba:{order}"]
    want = divergence.compute(log_softmax(a), log_softmax(b), names)
    for name, got in measured(a, b, measures=names).items():
        np.testing.assert_allclose(got, want[name], rtol=1e-6, err_msg=name)
    with_nan = a.copy()
    with_nan[2, 7] = math.nan
    got = measured(with_nan, b, measures=names)[names[0]]
    assert np.isnan(got).tolist() == [False, False, True, False, False, False]


def test_against_scipy() -> None:
    a, b = logits(3, 30, 3000), logits(4, 30, 3000)
    p, q = np.exp(log_softmax(a)), np.exp(log_softmax(b))
    got = measured(a, b, measures=["js", "kl_ab", "kl_ba"])
    np.testing.assert_allclose(got["js"], [jensenshannon(x, y) ** 2 for x, y in zip(p, q, strict=True)], atol=1e-7)
    np.testing.assert_allclose(got["kl_ab"], rel_entr(p, q).sum(-1), atol=2e-6)
    np.testing.assert_allclose(got["kl_ba"], rel_entr(q, p).sum(-1), atol=2e-6)


@pytest.mark.parametrize("distance", [1e-4, 3e-4, 1e-3])
def test_tiny_divergences_keep_their_digits(distance: float) -> None:
    """JS of about 1e-9 to 1e-7, against fifty digits: forms that subtract entropies have none left there."""
    a = logits(5, 1, 500)
    b = a + np.float32(distance) * logits(6, 1, 500, 1.0)
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(mpmath.mpf(float(x))) for x in row[0]] for row in (a, b))
        p, q = ([x / mpmath.fsum(row) for x in row] for row in (p, q))
        kl = mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True))
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        js = mpmath.fsum(x * mpmath.log(x / z) + y * mpmath.log(y / z) for x, y, z in zip(p, q, m, strict=True)) / 2
        squared = mpmath.fsum((mpmath.sqrt(x) - mpmath.sqrt(y)) ** 2 for x, y in zip(p, q, strict=True)) / 2
    got = measured(a, b)
    assert got["js"][0] == pytest.approx(float(js), rel=2e-4)
    assert got["kl_ab"][0] == pytest.approx(float(kl), rel=2e-4)
    assert got["hellinger"][0] == pytest.approx(float(mpmath.sqrt(squared)), rel=1e-4)


def test_equal_rows_differ_by_exactly_nothing() -> None:
    a = logits(7, 10, 3000, 8.0)
    a[:, ::5] = -math.inf
    for temperature in (1.0, 0.7):
        got = measured(a, a.copy(), temperature=temperature)
        for name in (*DISTANCES, "delta_logp"):
            assert got[name].tolist() == [0.0] * 10, name
        assert got["rank_of_b_in_a"].tolist() == got["top1_agree"].tolist() == [1.0] * 10


def test_disjoint_supports() -> None:
    with np.errstate(divide="ignore"):
        a = np.log(np.array([[0.5, 0.5, 0.0, 0.0]], dtype=np.float32))
        b = np.log(np.array([[0.0, 0.0, 1.0, 0.0]], dtype=np.float32))
    got = measured(a, b)
    assert got["js"][0] == pytest.approx(math.log(2), abs=1e-7)
    assert got["js"][0] <= math.log(2)
    for name in ("tv", "hellinger"):
        assert got[name][0] == pytest.approx(1.0, abs=1e-8)
        assert got[name][0] <= 1.0
    for name in ("kl_ab", "kl_ba", "renyi:0.5", "renyi:3", "renyi_ba:2"):
        assert got[name][0] == math.inf
    assert got["delta_logp"][0] == -math.inf


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([0.3, 3.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_any_pattern_of_excluded_tokens(seed: int, vocab_size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(2):
        row = (rng.normal(size=(4, vocab_size)) * scale).astype(np.float32)
        row[rng.random(row.shape) < rng.choice([0.0, 0.3, 0.8])] = -math.inf
        row[:, rng.integers(vocab_size)] = 1.0
        rows.append(row)
    want = divergence.compute(log_softmax(rows[0]), log_softmax(rows[1]), ALL, np.arange(4) % vocab_size)
    for name, got in measured(*rows).items():
        np.testing.assert_allclose(got, want[name], rtol=2e-4, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_half_precisions_are_widened_exactly(form: str) -> None:
    a, b = logits(8, 12, 4100), logits(9, 12, 4100)
    a[:, ::7] = b[:, ::7] = -math.inf
    a[:, 1] = 3e-6  # a subnormal of float16
    if form == "float16":
        halves = a.astype(np.float16), b.astype(np.float16)
        wide = tuple(row.astype(np.float32) for row in halves)
    else:
        halves = tuple((row.view(np.uint32) >> 16).astype(np.uint16) for row in (a, b))  # type: ignore[assignment]
        wide = tuple((row.astype(np.uint32) << 16).view(np.float32) for row in halves)
    left, right = measured(*halves), measured(*wide)
    for name in ALL:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-6, err_msg=name)  # sums have orders of their own


def test_rows_of_two_forms_meet_in_float32() -> None:
    a, b = logits(18, 3, 100), logits(19, 3, 100)
    half = b.astype(np.float16)
    want = measured(a, half.astype(np.float32))
    for name, got in measured(a, half).items():
        assert got.tolist() == want[name].tolist(), name


def test_a_row_does_not_depend_on_the_others_nor_on_threads() -> None:
    a, b = logits(10, 9, 4097), logits(11, 9, 4097)
    together = compare(Rows.of(a), Rows.of(b), ALL, [5] * 9, threads=3)
    for i in range(9):
        alone = compare(Rows.of(a[i : i + 1]), Rows.of(b[i : i + 1]), ALL, [5])
        assert all(alone.measures[name][0] == together.measures[name][i] for name in ALL)
        assert alone.logprobs_a[0] == together.logprobs_a[i]


def test_padded_columns_are_cut_before_the_softmax() -> None:
    a, b = logits(12, 4, 300), logits(13, 4, 300)
    padded = [np.concatenate([row, np.full((4, 20), 50, np.float32)], axis=1) for row in (a, b)]
    want = measured(a, b)
    for name, got in measured(*padded, vocab_size=300).items():
        assert got.tolist() == want[name].tolist(), name


@pytest.mark.parametrize("temperature", [0.7, 0.1, 0.013, 2.5, 100.0])
@pytest.mark.parametrize("distance", [1e-4, 0.1, 1.0])
def test_digits_are_kept_at_any_temperature(temperature: float, distance: float) -> None:
    """Scaled entries would be rounded before they are subtracted: of JS at 1e-9 three digits were left at 0.7."""
    a = logits(1, 8, 20_000, 3.0)
    b = a + np.float32(distance) * logits(2, 8, 20_000, 1.0)
    names = [name for name in ALL if not name.startswith("rank")]
    rows = [log_softmax(row / np.float64(temperature)) for row in (a, b)]
    want = divergence.compute(*rows, names, np.arange(8))
    found = compare(Rows.of(a), Rows.of(b), names, np.arange(8), temperature=temperature)
    np.testing.assert_allclose(found.logprobs_a, rows[0][np.arange(8), np.arange(8)], rtol=1e-8, atol=2e-8)
    for name, got in found.measures.items():
        if distance < 1e-3 and name in DISTANCES and name not in ("tv", "hellinger"):
            np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-14, err_msg=name)
        else:
            np.testing.assert_allclose(got, want[name], rtol=1e-6, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.1])
def test_ranks_and_agreement_do_not_hang_on_the_temperature(temperature: float) -> None:
    """Neighbouring floats, which scaling may make one."""
    low = logits(1, 3000, 1, 5.0)
    high = np.nextafter(low, np.float32(math.inf))
    a = np.concatenate([low, high, np.full_like(low, -30)], axis=1)
    b = np.concatenate([np.full_like(low, -30), high, low - 1], axis=1)
    got = measured(a, b, measures=["top1_agree", "rank_of_b_in_a", "rank_of_a_in_b"], temperature=temperature)
    assert all((column == 1).all() for column in got.values())


@pytest.mark.parametrize("vocab_size", [1, 2, 300])
@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.5, 1.0])
def test_hellinger_distances_of_nearly_certain_rows(vocab_size: int, temperature: float) -> None:
    a, b = logits(8, 50, vocab_size), logits(9, 50, vocab_size)
    rows = [log_softmax(row / np.float64(temperature)) for row in (a, b)]
    want = divergence.compute(*rows, ["hellinger", "renyi:0.5"])
    got = measured(a, b, measures=["hellinger", "renyi:0.5"], temperature=temperature)
    np.testing.assert_allclose(got["hellinger"], want["hellinger"], rtol=3e-6, atol=1e-12)
    np.testing.assert_allclose(got["renyi:0.5"], want["renyi:0.5"], rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("apart", [10.0, 80.0, 300.0])
def test_large_divergences_are_right_to_seven_digits(apart: float) -> None:
    a, b = logits(10, 6, 30_000, 3.0), logits(11, 6, 30_000, 3.0)
    b -= np.linspace(0, apart, 30_000, dtype=np.float32)
    want = divergence.compute(log_softmax(a), log_softmax(b), ["kl_ab", "kl_ba"])
    for name, got in measured(a, b, measures=["kl_ab", "kl_ba"]).items():
        np.testing.assert_allclose(got, want[name], rtol=2.5e-7, err_msg=name)


def test_temperature_scales_logits() -> None:
    a, b = logits(14, 6, 900), logits(15, 6, 900)
    want = divergence.compute(log_softmax(a / 0.6), log_softmax(b / 0.6), ALL, np.arange(6))
    for name, got in measured(a, b, temperature=0.6).items():
        np.testing.assert_allclose(got, want[name], rtol=3e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("wrong", [math.nan, -math.nan, math.inf])
def test_what_is_no_distribution_gives_nan(wrong: float) -> None:
    a, b = logits(16, 3, 50), logits(17, 3, 50)
    a[1, 7] = wrong
    found = compare(Rows.of(a), Rows.of(b), ["js", "kl_ab", "top_prob_a", "renyi:2", "topk_overlap:3"], [0, 0, 0])
    for column in (*found.measures.values(), found.logprobs_a):
        assert np.isnan(column).tolist() == [False, True, False]


def test_merging_tokens_of_half_precision_takes_little_memory() -> None:
    """A float32 copy of all rows would be of 26 MB; and in parts the same comes out."""
    rows = [(logits(seed, 100, 32_000) * 4).view(np.uint32) >> 16 for seed in (18, 19)]
    a, b = (Rows.of(row.astype(np.uint16)) for row in rows)
    job = Compare([3] * 101, 1, [3] * 101, 1, ["js", "renyi:2", "topk_overlap:5"], 0.7, [3, 9, 500])
    values(a, b, job, 0, 32_000)
    tracemalloc.start()
    found = values(a, b, job, 0, 32_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 22e6  # 8 MB of either row and what a thread works with
    want = values(a.widened(), b.widened(), job, 0, 32_000)
    for name, column in want.measures.items():
        np.testing.assert_array_equal(found.measures[name].numpy(), column.numpy())
    np.testing.assert_array_equal(found.logprobs_a.numpy(), want.logprobs_a.numpy())


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
        Rows.of(np.zeros((2, 3)))
