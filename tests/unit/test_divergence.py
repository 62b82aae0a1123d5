"""Measures against scipy and mpmath, at the ends of their range, and the same in numpy and torch."""

from __future__ import annotations

import math
from itertools import pairwise
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
from scipy.stats import rankdata

from rl_onoff import divergence
from rl_onoff.divergence import IN_NATS, LN2, MEASURES

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


@pytest.mark.parametrize("measure", [*MEASURES, "renyi:0.5", "renyi_ba:2", "topk_overlap:10"])
def test_numpy_and_torch_agree(measure: str) -> None:
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


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.99, 1.0001, 2.0, 100.0])
@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.2, 1.0, 5.0])
def test_renyi_keeps_its_digits(alpha: float, gap: float) -> None:
    logp = rows(2, 200)
    logq = near(logp, 3, gap)
    with mpmath.workdps(60):
        p, q = ([mpmath.exp(mpmath.mpf(float(x))) for x in row] for row in (logp, logq))
        p, q = ([x / mpmath.fsum(row) for x in row] for row in (p, q))
        order = mpmath.mpf(alpha)
        total = mpmath.fsum(x**order * y ** (1 - order) for x, y in zip(p, q, strict=True))
        truth = float(mpmath.log(total) / (order - 1))
    assert float(divergence.renyi(logp, logq, alpha)) == pytest.approx(truth, rel=1e-9, abs=0)


def test_renyi_between_its_neighbours() -> None:
    logp, logq = rows(20, 30, 100), rows(21, 30, 100)
    values = [divergence.renyi(logp, logq, alpha) for alpha in (0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 50.0)]
    assert all((low <= high).all() for low, high in pairwise(values))  # it grows with its order
    assert values[3].tolist() == divergence.kl(logp, logq).tolist()
    bhattacharyya = -2 * np.log(1 - divergence.hellinger(logp, logq) ** 2)
    assert values[1] == pytest.approx(bhattacharyya, rel=1e-10)
    assert (values[-1] <= (logp - logq).max(-1) + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0, 100.0])
def test_renyi_where_supports_differ(alpha: float) -> None:
    wide, narrow = np.log([0.5, 0.3, 0.2]), np.array([math.log(0.5), math.log(0.5), LOG0])
    want = math.log(0.5**alpha * 0.5 ** (1 - alpha) + 0.3**alpha * 0.5 ** (1 - alpha)) / (alpha - 1 or 1)
    assert divergence.renyi(wide, narrow, alpha) == (pytest.approx(want, rel=1e-12) if alpha < 1 else math.inf)
    assert np.isfinite(divergence.renyi(narrow, wide, alpha))
    assert divergence.renyi(np.array([0.0, LOG0]), np.array([LOG0, 0.0]), alpha) == math.inf


def test_a_tail_b_alone_gives_mass_to() -> None:
    tail = 1e-12
    logp, logq = np.array([0.0, LOG0]), np.log([1 - tail, tail])
    assert divergence.renyi(logp, logq, 0.5) == pytest.approx(-math.log1p(-tail), rel=1e-3)
    assert divergence.renyi(logp, logq, 3.0) == pytest.approx(-math.log1p(-tail), rel=1e-3)


def test_top_prob() -> None:
    logp = rows(22, 5, 70)
    assert divergence.top_prob(logp) == pytest.approx(np.exp(logp).max(-1), rel=1e-14)


def test_rank_of_best() -> None:
    logp, logq = rows(23, 50, 70), rows(24, 50, 70)
    want = [rankdata(-p, method="ordinal")[q.argmax()] for p, q in zip(logp, logq, strict=True)]
    assert divergence.rank_of_best(logp, logq).tolist() == want
    assert divergence.compute(logp, logq, ["rank_of_a_in_b"])["rank_of_a_in_b"].tolist() == (
        divergence.rank_of_best(logq, logp).tolist()
    )


def test_equals_rank_by_their_ids() -> None:
    p = np.array([-1.0, -1.0, LOG0, -3.0, LOG0])
    for token, rank in enumerate([1, 2, 4, 3, 5]):
        q = np.full(5, LOG0)
        q[token] = 0.0
        assert divergence.rank_of_best(p, q) == rank
    assert divergence.rank_of_best(p, np.zeros(5)) == 1  # of equals in B the lowest id is its best


@pytest.mark.parametrize("k", [1, 3, 10, 70, 1000])
def test_topk_overlap(k: int) -> None:
    logp, logq = rows(25, 20, 70), rows(26, 20, 70)
    first = min(k, 70)
    tops = [[set(np.argsort(-row)[:k].tolist()) for row in each] for each in (logp, logq)]
    want = [len(left & right) / first for left, right in zip(*tops, strict=True)]
    assert divergence.topk_overlap(logp, logq, k).tolist() == want


def test_topk_overlap_of_equals_and_of_excluded_tokens() -> None:
    flat = np.zeros(6)
    assert divergence.topk_overlap(flat, np.array([0.0, -1, -2, -3, -4, -5]), 3) == 1.0
    assert divergence.topk_overlap(flat, np.array([-5.0, -4, -3, -2, -1, 0]), 3) == 0.0
    left, right = np.array([0.0, -1, LOG0, LOG0, LOG0, LOG0]), np.array([LOG0, LOG0, LOG0, LOG0, LOG0, 0.0])
    assert divergence.topk_overlap(left, right, 4) == 0.0
    assert divergence.topk_overlap(left, left, 4) == 1.0
    assert divergence.topk_overlap(left, np.array([0.0, LOG0, LOG0, LOG0, LOG0, LOG0]), 4) == 0.5


@given(
    st.integers(1, 12), st.lists(st.sampled_from([LOG0, -1.0, -2.0, 0.0]), min_size=6, max_size=6), st.integers(0, 9)
)
def test_equal_rows_are_exactly_equal_to_every_measure(k: int, row: list[float], seed: int) -> None:
    logp = log_softmax(np.array([*row, 0.0]) + np.random.default_rng(seed).integers(0, 2, 7))
    names = ["renyi:0.5", "renyi:7", "renyi_ba:100", "rank_of_a_in_b", "rank_of_b_in_a", f"topk_overlap:{k}"]
    assert [float(value) for value in divergence.compute(logp, logp.copy(), names).values()] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("js", ("js", None)),
        ("renyi:0.5", ("renyi", 0.5)),
        ("renyi:100", ("renyi", 100.0)),
        ("renyi_ba:0.010000", ("renyi_ba", 0.01)),
        ("topk_overlap:1000", ("topk_overlap", 1000.0)),
    ],
)
def test_names(name: str, parsed: tuple[str, float | None]) -> None:
    assert divergence.parse(name) == parsed


@pytest.mark.parametrize(
    "name",
    [
        *("", "jsd", "JS", "js:1", "js:", "renyi", "renyi:", "renyi:0", "renyi:0.001", "renyi:101", "renyi:-1"),
        *("renyi:1e1", "renyi:nan", "renyi:inf", "renyi: 1", "renyi:.5", "renyi:1.", "renyi:１", "renyi:0.5\n"),
        *("renyi:0.5:2", "topk_overlap", "topk_overlap:0", "topk_overlap:1001", "topk_overlap:2.0", "topk_overlap:1_0"),
    ],
)
def test_wrong_names_are_refused_with_the_limits(name: str) -> None:
    limits = {
        "renyi": "ALPHA must be a decimal .* from 0.01 to 100 in renyi:ALPHA",
        "topk_overlap": "K must be a whole number from 1 to 1000 in topk_overlap:K",
    }
    every = r"renyi:ALPHA \(0.01 <= ALPHA <= 100\).*topk_overlap:K \(1 <= K <= 1000\)"
    with pytest.raises(ValueError, match=limits.get(name.partition(":")[0], every)):
        divergence.parse(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("topk_overlap:1001", "from 1 to 1000 in topk_overlap:K, not 1001$"),
        ("renyi:1e-2", "from 0.01 to 100 in renyi:ALPHA, not 1e-2$"),
        ("renyi", "in renyi:ALPHA$"),
        ("jsd", "unknown measure 'jsd'; known: js, "),
        ("renyi:my own secret", "in renyi:ALPHA$"),
    ],
)
def test_a_wrong_name_is_told_with_what_is_wrong_with_it(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        divergence.parse(name)


@pytest.mark.parametrize("name", [*MEASURES, "renyi:3", "renyi_ba:0.5", "topk_overlap:10"])
def test_swapping_the_rows_is_swapping_the_name(name: str) -> None:
    logp, logq, ids = rows(27, 9, 40), rows(28, 9, 40), np.arange(9)
    other = divergence.swapped(name)
    sign = -1 if name == "delta_logp" else 1
    want = sign * divergence.compute(logp, logq, [name], ids)[name]
    assert divergence.compute(logq, logp, [other], ids)[other] == pytest.approx(want, rel=1e-12)
    assert divergence.swapped(other) == name
    assert divergence.in_nats(name) == divergence.in_nats(other) == (name.split(":")[0] in IN_NATS)


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


def test_renyi_of_rows_whose_probabilities_underflow() -> None:
    """All of the sum may be of tokens that neither model would ever emit."""
    rng = np.random.default_rng(3)
    logp, logq = (log_softmax(rng.normal(size=(20, 50)) * 1e4, axis=-1) for _ in "pq")
    power = 0.5 * (logp + logq)
    want = -2 * (power.max(-1) + np.log(np.exp(power - power.max(-1, keepdims=True)).sum(-1)))
    np.testing.assert_allclose(divergence.renyi(logp, logq, 0.5), want, rtol=1e-12, atol=1e-15)
