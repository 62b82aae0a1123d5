"""Bounds from parts of rows, as they are stored, against the measures of the whole rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_onoff import divergence
from rl_onoff.bounds import BOUNDED, Bounds, Precision, error, from_top_k, from_union, known_from_top_k

TRUTH: dict[str, Callable[[Any, Any], Any]] = {
    "js": divergence.js,
    "tv": divergence.tv,
    "hellinger": divergence.hellinger,
    "kl_ab": divergence.kl,
    "kl_ba": lambda p, q: divergence.kl(q, p),
}


def bfloat16(row: np.ndarray) -> np.ndarray:
    bits = row.astype(np.float32).view(np.uint32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


#: How a row may have been stored, and what is said of it. JSON brings float32 as float64.
STORED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Precision | None]] = {
    "float64": (lambda row: row, "float64"),
    "float32": (lambda row: row.astype(np.float32), None),
    "json": (lambda row: row.astype(np.float32).astype(np.float64), None),
    "float16": (lambda row: row.astype(np.float32).astype(np.float16), None),
    "bfloat16": (bfloat16, "bfloat16"),
    "three digits": (lambda row: row.round(3), 0.0005),
    "one digit": (lambda row: row.round(1), 0.05),
}


def normalised(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max()
    with np.errstate(divide="ignore"):
        row: np.ndarray = logits - np.log(np.exp(logits).sum())
    return row


def pair(seed: int, vocab_size: int, distance: float, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = -sharpness * np.log(rng.permutation(vocab_size) + 1.0) + rng.normal(0, 0.7, vocab_size)
    return normalised(a), normalised(a + distance * rng.normal(size=vocab_size))


def top(row: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-row, kind="stable")[:k]


def check(p: np.ndarray, q: np.ndarray, k_p: int, k_q: int, stored: str) -> None:
    """Both kinds of bounds hold of all measures, but for what float64 does to the truth itself."""
    cast, precision = STORED[stored]
    with np.errstate(over="ignore"):  # what float16 cannot hold is -inf in it
        known_p, known_q = cast(p), cast(q)
    top_p, top_q = top(known_p, k_p), top(known_q, k_q)
    union = np.union1d(top_p, top_q)
    for name, measure in TRUTH.items():
        truth = float(measure(p, q))
        off = 1e-15 + (1e-12 * truth if math.isfinite(truth) else 0.0)
        for bounds in (
            from_union(known_p[union], known_q[union], name, precision=precision),
            from_top_k(top_p, known_p[top_p], top_q, known_q[top_q], name, precision=precision),
        ):
            assert bounds.lower <= truth + off, (name, stored)
            assert truth - off <= bounds.upper, (name, stored)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 400),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([0.0, 1e-9, 1e-7, 1e-5, 1e-3, 0.01, 0.3, 1.0, 4.0]),
    st.sampled_from([0.0, 0.5, 1.5, 2.5, 12.0]),
    st.sampled_from(sorted(STORED)),
)
@settings(max_examples=400, deadline=None)
def test_the_truth_lies_between(
    seed: int, vocab_size: int, k_p: int, k_q: int, distance: float, sharpness: float, stored: str
) -> None:
    """Of rows next to each other and far apart, flat and peaked, of few tokens and many, cut alike and not, k = V."""
    p, q = pair(seed, vocab_size, distance, sharpness)
    check(p, q, min(k_p, vocab_size), min(k_q, vocab_size), stored)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.data())
@settings(max_examples=150, deadline=None)
def test_the_truth_lies_between_where_tokens_are_excluded(seed: int, vocab_size: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for kept in (0, vocab_size - 1):
        logits = np.where(rng.random(vocab_size) < 0.4, -np.inf, rng.normal(0, 2, vocab_size).round())
        logits[kept] = 0.0
        rows.append(normalised(logits))
    ks = data.draw(st.tuples(st.integers(1, vocab_size), st.integers(1, vocab_size)))
    check(rows[0], rows[1], *ks, data.draw(st.sampled_from(sorted(STORED))))


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([600.0, 800.0, 1e4, 1e5, 1e30]), st.data())
@settings(max_examples=300, deadline=None)
def test_the_truth_lies_between_where_tokens_are_masked(
    seed: int, vocab_size: int, mask: float, data: st.DataObject
) -> None:
    """By a finite number, as by a low temperature: less likely than float64 can tell, but no token is excluded."""
    rng = np.random.default_rng(seed)
    rows = []
    for kept in (0, vocab_size - 1):
        masked = rng.random(vocab_size) < 0.6
        masked[kept] = False
        depth = mask * rng.choice([0.9, 1.0, 1.1, 1.2], vocab_size)
        rows.append(normalised(np.where(masked, -depth, rng.normal(0, 2, vocab_size))))
    ks = data.draw(st.tuples(st.integers(1, vocab_size), st.integers(1, vocab_size)))
    check(rows[0], rows[1], *ks, data.draw(st.sampled_from(sorted(STORED))))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([math.log(0.5), math.log(0.5)], [0.0, -1e4]),
        ([0.0, -700.0, -720.0], [0.0, -760.0, -800.0]),
        ([0.0, -744.0], [0.0, -745.2]),
    ],
)
def test_what_underflows_is_not_excluded(p: list[float], q: list[float]) -> None:
    logp, logq = np.array(p), np.array(q)
    truth = float(divergence.kl(logp, logq))
    assert math.isfinite(truth)
    assert from_union(logp, logq, "kl_ab", precision="float64").lower <= truth
    assert from_union(logq, logp, "kl_ba", precision="float64").lower <= truth


def test_an_own_id_that_is_next_to_nothing_is_not_excluded_by_the_other_row() -> None:
    """The other's best answer, a share of it, underflows."""
    p, q = normalised(np.array([0.0, -1.0, -705.0])), normalised(np.array([-60.0, -0.1, -760.0]))
    bounds = from_top_k(np.arange(3), p, np.arange(2), q[:2], "kl_ab", precision="float64")
    assert bounds.lower == pytest.approx(float(divergence.kl(p, q)), rel=1e-9)
    check(p, q, 3, 2, "float64")


def test_only_minus_infinity_excludes_and_not_in_float16() -> None:
    """A float16 is -inf from -65520 on."""
    half, excluded = np.log([0.5, 0.5]), np.array([0.0, -np.inf])
    for precision in (None, "float64", "float32", "bfloat16", 0.01):
        assert from_union(half, excluded, "kl_ab", precision=precision).lower == math.inf  # type: ignore[arg-type]
    with np.errstate(over="ignore"):
        masked = np.array([0.0, -1e5]).astype(np.float16)
    assert np.isneginf(masked[1])
    for bounds in (from_union(half, masked, "kl_ab"), from_union(half, excluded, "kl_ab", precision="float16")):
        assert 300 < bounds.lower < float(divergence.kl(half, np.array([0.0, -1e5])))


@pytest.mark.parametrize("stored", sorted(STORED))
def test_the_same_row_cut_in_two_ways_is_no_distance_from_itself(stored: str) -> None:
    """What is listed of one and not of the other is the same probability all the same."""
    p, _ = pair(7, 40, 0.0, 1.5)
    for k_p, k_q in ((3, 11), (40, 1), (40, 40)):
        check(p, p, k_p, k_q, stored)


def test_float32_values_do_not_part_rows_that_are_closer_than_float32() -> None:
    p = np.array([-1.045298764938429, -2.957508696520509, -0.702626140677259, -2.2908329058503787])
    q = np.array([-1.0452988073382923, -2.9575086282119107, -0.7026261306126711, -2.2908328428560227])
    bounds = from_union(p.astype(np.float32), q.astype(np.float32), "hellinger")
    assert bounds.lower == 0.0
    assert from_union(p, q, "hellinger", precision="float64").upper == pytest.approx(1.29e-8, abs=3e-7)


def test_legitimate_rows_may_list_a_little_more_than_everything() -> None:
    """Five tokens of a fifth each, in float16, sum to more than 1."""
    row = np.full(5, np.log(1 / 5)).astype(np.float16)
    assert np.exp(row.astype(np.float64)).sum() > 1 + 5e-5
    assert from_union(row, row).lower == 0.0
    with pytest.raises(ValueError, match="more than the precision allows"):
        from_union(row, row, precision="float64")


def test_the_error_of_a_log_probability() -> None:
    row = np.array([-8.0, 0.0, -np.inf])
    assert error(row, 0.01) == pytest.approx([0.01] * 3)
    assert error(row) == pytest.approx(error(row.astype(np.float32)))
    assert (error(row, "float64") < error(row)).all()
    assert error(row.astype(np.float16))[0] == pytest.approx(8 * 2.0**-11, rel=0.01)
    assert error(row, "bfloat16")[0] == pytest.approx(8 * 2.0**-8, rel=0.01)
    for wrong in (-0.1, math.nan, math.inf, "int8"):
        with pytest.raises(ValueError, match="precision"):
            error(row, wrong)  # type: ignore[arg-type]


def test_a_float32_softmax_keeps_within_its_error() -> None:
    torch = pytest.importorskip("torch")
    logits = torch.randn(8, 152_000, generator=torch.Generator().manual_seed(0))
    for spread in (0.01, 1.0, 10.0):
        exact = (logits * spread).double().log_softmax(-1).numpy()
        rounded = (logits * spread).log_softmax(-1).numpy()
        # The logits themselves are float32 in both.
        assert (np.abs(rounded - exact) <= error(rounded.ravel()).reshape(rounded.shape)).all()


@given(st.integers(0, 2**32 - 1), st.integers(20, 400), st.sampled_from([0.1, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_knowing_more_never_hurts(seed: int, vocab_size: int, distance: float) -> None:
    p, q = pair(seed, vocab_size, distance, 1.5)
    order = np.argsort(-np.maximum(p, q))
    found = [from_union(p[order[:n]], q[order[:n]], precision="float64") for n in (1, 5, 15, vocab_size)]
    for less, more in pairwise(found):
        assert less.lower <= more.lower + 1e-12
        assert more.upper <= less.upper + 1e-12
    truth = float(divergence.js(p, q))
    assert (found[-1].lower, found[-1].upper) == pytest.approx((truth, truth), abs=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_no_row_that_fits_comes_closer_than_the_lower_bound_by_much(name: str) -> None:
    """Two tokens in all: one listed of each row, so that the rows are known but for the caps."""
    p, q = np.log([0.7, 0.3]), np.log([0.2, 0.8])
    bounds = from_top_k(np.array([0]), p[:1], np.array([1]), q[1:], name, precision="float64")
    assert bounds.lower == pytest.approx(float(TRUTH[name](p, q)), abs=1e-6)


def test_what_both_rows_list_counts_whatever_is_known_of_the_rests() -> None:
    """As a trained model's rows are: two ids hold nearly all, the rests less than a softmax in float32 is off by."""
    p = normalised(np.array([-0.075, -2.626, -18.0, -19.0]))
    q = normalised(np.array([-5.871, -0.003, -20.0, -18.5]))
    shared = float(divergence.hellinger(p[:2], q[:2]))
    assert shared > 0.8
    bounds = from_top_k(np.array([0, 1, 2]), p[:3], np.array([0, 1, 3]), q[[0, 1, 3]], "hellinger")
    assert bounds.lower == pytest.approx(shared, abs=1e-3)
    assert bounds.upper == pytest.approx(shared, abs=1e-3)


def test_a_case_worked_by_hand() -> None:
    """One id is known, 0.6 in P and 0.4 in Q; the rests may coincide or not meet."""
    bounds = from_union(np.log([0.6]), np.log([0.4]), "tv")
    assert (bounds.lower, bounds.upper) == pytest.approx((0.2, 0.6), abs=1e-4)
    assert from_union(np.log([0.6]), np.log([0.4]), "kl_ab").upper == math.inf


def test_own_ids_alone_give_wider_bounds_than_the_union() -> None:
    p, q = pair(3, 2000, 1.0, 1.5)
    top_p, top_q = top(p, 20), top(q, 20)
    union = np.union1d(top_p, top_q)
    wide, narrow = from_top_k(top_p, p[top_p], top_q, q[top_q]), from_union(p[union], q[union])
    assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper
    assert wide.lower > 0


def test_several_measures_of_the_same_rows() -> None:
    p, q = pair(4, 50, 1.0, 1.5)
    rows = (top(p, 5), p[top(p, 5)], top(q, 8), q[top(q, 8)])
    known = known_from_top_k(*rows)
    assert {name: known.bounds(name) for name in BOUNDED} == {name: from_top_k(*rows, name) for name in BOUNDED}


def test_decisions() -> None:
    bounds = Bounds(0.1, 0.2)
    assert [bounds.decides(t) for t in (0.05, 0.1, 0.15, 0.2, 0.3)] == [True, False, False, True, True]


@pytest.mark.parametrize(
    "arguments",
    [
        (np.log([0.5]), np.log([0.5]), "renyi:2"),
        (np.log([0.5]), np.log([0.5, 0.1]), "js"),
        (np.log([0.9, 0.9]), np.log([0.5, 0.1]), "js"),
        (np.log([1.1]), np.log([0.5]), "js"),
        (np.array([math.nan]), np.log([0.5]), "js"),
        (np.array([]), np.array([]), "js"),
    ],
)
def test_what_is_no_part_of_rows_is_refused(arguments: tuple[np.ndarray, np.ndarray, str]) -> None:
    with pytest.raises(ValueError, match=r"bounds|same ids|sum to more than 1|NaN"):
        from_union(*arguments)


def test_repeated_ids_are_refused() -> None:
    half = np.log([0.2, 0.2])
    with pytest.raises(ValueError, match="distinct"):
        from_top_k(np.array([1, 1]), half, np.array([1, 2]), half)
