"""Bounds from parts of rows against the measures of the whole rows."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_onoff import divergence
from rl_onoff.bounds import Bounds, from_top_k, from_union

BOUNDED = {"js": divergence.js, "tv": divergence.tv, "hellinger": divergence.hellinger}
SLACK = 1e-8


def pair(seed: int, vocab_size: int, distance: float, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = -sharpness * np.log(rng.permutation(vocab_size) + 1.0) + rng.normal(0, 0.7, vocab_size)
    b = a + distance * rng.normal(size=vocab_size)
    return tuple(row - np.log(np.exp(row).sum()) for row in (a, b))  # type: ignore[return-value]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 400),
    st.integers(1, 60),
    st.sampled_from([0.01, 0.3, 1.0, 4.0]),
    st.sampled_from([0.5, 1.5, 2.5]),
)
@settings(max_examples=300, deadline=None)
def test_the_truth_lies_between(seed: int, vocab_size: int, k: int, distance: float, sharpness: float) -> None:
    p, q = pair(seed, vocab_size, distance, sharpness)
    k = min(k, vocab_size)
    top_p, top_q = np.argsort(-p)[:k], np.argsort(-q)[:k]
    union = np.union1d(top_p, top_q)
    for name in ("js", "tv", "hellinger", "kl_ab", "kl_ba"):
        first, second = (q, p) if name == "kl_ba" else (p, q)
        truth = float(BOUNDED[name](p, q)) if name in BOUNDED else float(divergence.kl(first, second))
        for bounds in (from_union(p[union], q[union], name), from_top_k(top_p, p[top_p], top_q, q[top_q], name)):
            assert bounds.lower <= truth + SLACK
            assert truth <= bounds.upper + SLACK


@given(st.integers(0, 2**32 - 1), st.integers(20, 400), st.sampled_from([0.1, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_knowing_more_never_hurts(seed: int, vocab_size: int, distance: float) -> None:
    p, q = pair(seed, vocab_size, distance, 1.5)
    order = np.argsort(-np.maximum(p, q))
    found = [from_union(p[order[:n]], q[order[:n]]) for n in (1, 5, 15, vocab_size)]
    for less, more in pairwise(found):
        assert less.lower <= more.lower + SLACK
        assert more.upper <= less.upper + SLACK
    truth = float(divergence.js(p, q))
    assert (found[-1].lower, found[-1].upper) == pytest.approx((truth, truth), abs=2e-6)


def test_a_case_worked_by_hand() -> None:
    """One id is known, 0.6 in P and 0.4 in Q; the rests may coincide or not meet."""
    bounds = from_union(np.log([0.6]), np.log([0.4]), "tv")
    assert (bounds.lower, bounds.upper) == pytest.approx((0.2, 0.6), abs=1e-5)
    assert from_union(np.log([0.6]), np.log([0.4]), "kl_ab").upper == math.inf


def test_own_ids_alone_give_wider_bounds_than_the_union() -> None:
    p, q = pair(3, 2000, 1.0, 1.5)
    top_p, top_q = np.argsort(-p)[:20], np.argsort(-q)[:20]
    union = np.union1d(top_p, top_q)
    wide, narrow = from_top_k(top_p, p[top_p], top_q, q[top_q]), from_union(p[union], q[union])
    assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper
    assert wide.lower > 0


def test_decisions() -> None:
    bounds = Bounds(0.1, 0.2)
    assert [bounds.decides(t) for t in (0.05, 0.1, 0.15, 0.2, 0.3)] == [True, False, False, True, True]


@pytest.mark.parametrize(
    "arguments",
    [
        (np.log([0.5]), np.log([0.5]), "renyi:2"),
        (np.log([0.5]), np.log([0.5, 0.1]), "js"),
        (np.log([0.9, 0.9]), np.log([0.5, 0.1]), "js"),
        (np.array([math.nan]), np.log([0.5]), "js"),
        (np.array([]), np.array([]), "js"),
    ],
)
def test_what_is_no_part_of_rows_is_refused(arguments: tuple[np.ndarray, np.ndarray, str]) -> None:
    with pytest.raises(ValueError, match=r"bounds|same ids|sum to 1"):
        from_union(*arguments)


def test_repeated_ids_are_refused() -> None:
    half = np.log([0.2, 0.2])
    with pytest.raises(ValueError, match="distinct"):
        from_top_k(np.array([1, 1]), half, np.array([1, 2]), half)
