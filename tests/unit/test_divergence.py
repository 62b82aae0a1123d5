"""Measures against scipy and mpmath, at the ends of their range, and the same in numpy and torch."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.special import log_softmax, rel_entr

from rl_onoff import divergence
from rl_onoff.divergence import LN2, MEASURES, Measure

Rows = npt.NDArray[np.float64]
LOG0 = -math.inf


def rows(seed: int, *shape: int, scale: float = 3.0) -> Rows:
    drawn: Rows = log_softmax(np.random.default_rng(seed).normal(0, scale, size=shape), axis=-1)
    return drawn


def near(row: Rows, seed: int, gap: float) -> Rows:
    """A row whose log-probabilities differ from `row`'s by about `gap`."""
    moved: Rows = log_softmax(row + np.random.default_rng(seed).normal(0, gap, size=row.shape), axis=-1)
    return moved


def exact(logp: Rows, logq: Rows) -> dict[str, float]:
    """JS and KL of the given float64 rows, renormalised, in 60 digits."""
    with mpmath.workdps(60):
        p, q = ([mpmath.exp(mpmath.mpf(float(x))) for x in row] for row in (logp, logq))
        p, q = ([x / mpmath.fsum(row) for x in row] for row in (p, q))
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]

        def kl(left: list[Any], right: list[Any]) -> Any:
            return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(left, right, strict=True) if x > 0)

        return {"js": float((kl(p, m) + kl(q, m)) / 2), "kl_ab": float(kl(p, q)), "kl_ba": float(kl(q, p))}


def test_against_scipy() -> None:
    logp, logq = rows(0, 20, 300), rows(1, 20, 300)
    p, q = np.exp(logp), np.exp(logq)
    assert divergence.kl(logp, logq) == pytest.approx(rel_entr(p, q).sum(-1), rel=1e-12)
    assert divergence.js(logp, logq) == pytest.approx(distance.jensenshannon(p, q, axis=-1) ** 2, rel=1e-12)
    assert divergence.tv(logp, logq) == pytest.approx(0.5 * np.abs(p - q).sum(-1), rel=1e-12)
    hellinger = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2)
    assert divergence.hellinger(logp, logq) == pytest.approx(hellinger, rel=1e-12)
    assert divergence.entropy(logp) == pytest.approx(-(p * logp).sum(-1), rel=1e-12)


@pytest.mark.parametrize("gap", [1e-6, 3e-6, 1e-5, 1e-4, 1e-2, 0.2, 0.5, 1.0, 5.0])
def test_digits_survive_down_to_the_smallest_values(gap: float) -> None:
    logp = rows(2, 200)
    logq = near(logp, 3, gap)
    truth = exact(logp, logq)
    assert float(divergence.js(logp, logq)) == pytest.approx(truth["js"], rel=1e-9, abs=0)
    # A row of float64 sums to 1 within 1e-16, which is all that this form of KL adds.
    assert float(divergence.kl(logp, logq)) == pytest.approx(truth["kl_ab"], rel=1e-9, abs=1e-15)
    assert float(divergence.kl(logq, logp)) == pytest.approx(truth["kl_ba"], rel=1e-9, abs=1e-15)


def test_tiny_js_is_in_the_range_meant_here() -> None:
    logp = rows(2, 200)
    assert 1e-14 < float(divergence.js(logp, near(logp, 3, 1e-6))) < 1e-12
    assert 1e-9 < float(divergence.js(logp, near(logp, 3, 1e-3))) < 1e-6


@pytest.mark.parametrize("t", [1e-9, 1e-3, 0.1, 0.2, 0.2499999, 0.25, 0.26, 0.5, 0.9, 0.999999, 1.0])
def test_the_series_and_the_closed_form_meet(t: float) -> None:
    with mpmath.workdps(50):
        x = mpmath.mpf(t)
        rest = (1 - x) * mpmath.log(1 - x) if t < 1 else mpmath.mpf(0)
        truth = float(((1 + x) * mpmath.log(1 + x) + rest) / 2)
    assert float(divergence._entropy_gap(np.array([t]))[0]) == pytest.approx(truth, rel=1e-15, abs=0)
    assert float(divergence._entropy_gap(np.array([-t]))[0]) == pytest.approx(truth, rel=1e-15, abs=0)


@pytest.mark.parametrize("d", [1e-12, -1e-3, 0.1, -0.2, 0.2499, -0.2499])
def test_the_series_of_kl(d: float) -> None:
    with mpmath.workdps(50):
        truth = float(mpmath.expm1(mpmath.mpf(d)) - mpmath.mpf(d))
    assert float(divergence._exp_minus_1_minus(np.array([d]))[0]) == pytest.approx(truth, rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_rows_give_exactly_zero(dtype: str) -> None:
    logp = rows(4, 3, 50).astype(dtype)
    logp[0, :7] = LOG0
    values = divergence.compute(logp, logp.copy(), ["js", "kl_ab", "kl_ba", "tv", "hellinger"])
    assert all((value == 0).all() for value in values.values())


def test_disjoint_supports() -> None:
    logp = np.array([math.log(0.5), math.log(0.5), LOG0, LOG0])
    logq = logp[::-1].copy()
    values = divergence.compute(logp, logq, ["js", "kl_ab", "kl_ba", "tv", "hellinger"])
    assert values["js"] == pytest.approx(LN2, rel=1e-15)
    assert values["kl_ab"] == values["kl_ba"] == math.inf
    assert values["tv"] == pytest.approx(1.0)
    assert values["hellinger"] == pytest.approx(1.0)


def test_kl_is_infinite_only_where_q_excludes_what_p_allows() -> None:
    wide, narrow = np.log([0.5, 0.3, 0.2]), np.array([math.log(0.5), math.log(0.5), LOG0])
    assert divergence.kl(wide, narrow) == math.inf
    assert divergence.kl(narrow, wide) == pytest.approx(0.5 * math.log(0.5 / 0.3), rel=1e-13)


def test_entries_of_minus_infinity_in_both_rows_do_not_count() -> None:
    logp, logq = rows(5, 40), rows(6, 40)
    gap = np.full(3, LOG0)
    padded = divergence.compute(np.concatenate([logp, gap]), np.concatenate([logq, gap]), ["js", "kl_ab", "entropy_a"])
    for name, value in divergence.compute(logp, logq, ["js", "kl_ab", "entropy_a"]).items():
        assert padded[name] == pytest.approx(value, rel=1e-14)


def test_a_probability_that_underflows_is_no_mass() -> None:
    logp = np.array([0.0, -800.0])
    logq = np.array([0.0, LOG0])
    assert divergence.kl(logp, logq) == 0
    assert divergence.js(logp, logq) == 0
    assert divergence.entropy(logp) == 0


def test_one_certain_token() -> None:
    certain = np.array([0.0, LOG0, LOG0])
    assert divergence.entropy(certain) == 0
    assert divergence.js(certain, np.log([0.25, 0.5, 0.25])) == pytest.approx(
        distance.jensenshannon([1, 0, 0], [0.25, 0.5, 0.25]) ** 2, rel=1e-14
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_numpy_and_torch_agree(measure: Measure) -> None:
    logp, logq = rows(7, 6, 90).astype(np.float32), rows(8, 6, 90).astype(np.float32)
    logp[1, 3], logq[2, 4] = LOG0, LOG0
    logp[3, 5] = logq[3, 5] = LOG0
    ids = np.array([0, 3, 4, 5, 6, 89])
    by_numpy = divergence.compute(logp, logq, [measure], ids)[measure]
    tensors = (torch.from_numpy(array) for array in (logp, logq))
    by_torch = divergence.compute(*tensors, [measure], torch.from_numpy(ids))[measure]
    assert by_numpy.dtype == np.float64
    assert by_torch.dtype == torch.float64
    assert by_torch.numpy() == pytest.approx(by_numpy, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_widened_first(dtype: torch.dtype) -> None:
    logp, logq = (torch.from_numpy(rows(seed, 64)).to(dtype) for seed in (9, 10))
    assert float(divergence.js(logp, logq)) == float(divergence.js(logp.double(), logq.double()))


def test_gather_and_delta_logp() -> None:
    logp = np.array([[-1.0, -2.0, LOG0], [-1.0, LOG0, LOG0], [-1.0, LOG0, LOG0]])
    logq = np.array([[-1.5, -2.5, LOG0], [-1.0, -3.0, LOG0], [LOG0, LOG0, LOG0]])
    assert divergence.gather(logp, np.array([1, 0, 0])).tolist() == [-2.0, -1.0, -1.0]
    got = divergence.compute(logp, logq, ["delta_logp"], np.array([1, 1, 0]))["delta_logp"]
    assert got.tolist() == [-0.5, math.inf, -math.inf]
    neither = divergence.compute(logp, logq, ["delta_logp"], np.array([2, 2, 2]))["delta_logp"]
    assert neither.tolist() == [0.0, 0.0, 0.0]


def test_compute_refuses_what_it_cannot() -> None:
    row = rows(11, 5)
    with pytest.raises(ValueError, match="unknown measure 'jsd'; known: js"):
        divergence.compute(row, row, ["jsd"])
    with pytest.raises(ValueError, match="token_ids"):
        divergence.compute(row, row, ["delta_logp"])


logits = st.lists(st.one_of(st.floats(-60, 60), st.just(LOG0)), min_size=4, max_size=4).filter(
    lambda row: any(math.isfinite(x) for x in row)
)


@given(logits, logits, logits)
def test_properties(left: list[float], right: list[float], third: list[float]) -> None:
    p, q, r = (log_softmax(np.array(row)) for row in (left, right, third))
    slack = 1e-12
    js = float(divergence.js(p, q))
    assert 0 <= js <= LN2 + slack
    assert js == float(divergence.js(q, p))
    mean = (np.exp(p) + np.exp(q)) / 2
    assert js == pytest.approx((rel_entr(np.exp(p), mean) + rel_entr(np.exp(q), mean)).sum() / 2, abs=slack)
    tv, hellinger = float(divergence.tv(p, q)), float(divergence.hellinger(p, q))
    assert 0 <= tv <= 1 + slack
    assert 0 <= hellinger <= 1 + slack
    assert float(divergence.kl(p, q)) >= 2 * tv**2 - slack  # Pinsker
    assert tv**2 / 2 - slack <= js <= LN2 * tv + slack  # Lin 1991; Topsoe 2000
    assert hellinger**2 - slack <= tv <= math.sqrt(2) * hellinger + slack
    # The root of JS is a metric (Endres and Schindelin 2003).
    ways = [math.sqrt(float(divergence.js(*pair))) for pair in ((p, r), (r, q))]
    assert math.sqrt(js) <= sum(ways) + 1e-7
    assert -slack <= float(divergence.entropy(p)) <= math.log(4) + slack
