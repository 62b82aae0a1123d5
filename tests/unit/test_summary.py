"""Summaries against numpy and scipy, with infinities, and the perplexity ratio against a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl_onoff.moments import Moments
from rl_onoff.summary import PERCENTILES, Values, perplexities, statistics


def test_moments_and_percentiles() -> None:
    values = np.random.default_rng(0).gamma(0.2, size=1000)
    got = statistics(values)
    assert (got.count, got.infinite) == (1000, 0)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert got.std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert got.stderr == pytest.approx(stats.sem(values), rel=1e-12)
    assert (got.min, got.max) == (values.min(), values.max())
    assert list(got.percentiles) == ["0.1", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9"]
    assert list(got.percentiles.values()) == pytest.approx(np.percentile(values, PERCENTILES), rel=1e-12)


def test_one_value() -> None:
    got = statistics([0.5])
    assert (got.count, got.mean, got.min, got.max) == (1, 0.5, 0.5, 0.5)
    assert math.isnan(got.std)  # one value has no spread to tell its error by
    assert math.isnan(got.stderr)
    assert set(got.percentiles.values()) == {0.5}


def test_infinite_values_are_counted_and_ordered_but_not_averaged() -> None:
    got = statistics([1.0, 3.0, math.inf, math.inf])
    assert (got.count, got.infinite, got.mean) == (4, 2, 2.0)
    assert got.std == pytest.approx(math.sqrt(2))
    assert got.stderr == pytest.approx(1.0)
    assert (got.min, got.max) == (1.0, math.inf)
    assert (got.percentiles["50"], got.percentiles["90"]) == (3.0, math.inf)


def test_nothing_finite() -> None:
    got = statistics([math.inf, math.inf])
    assert (got.infinite, got.mean) == (2, math.inf)
    assert math.isnan(got.std)
    assert math.isnan(got.stderr)
    assert set(got.percentiles.values()) == {math.inf}


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.nan]])
def test_no_values_and_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value and no NaN"):
        statistics(values)


def test_one_finite_value_among_infinite_ones_has_no_error() -> None:
    got = statistics([0.78, *[math.inf] * 6])
    assert (got.mean, got.infinite) == (0.78, 6)
    assert math.isnan(got.stderr)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.inf), st.just(-math.inf)), min_size=1, max_size=50))
def test_errors_are_known_of_two_finite_values_and_all_is_in_order(values: list[float]) -> None:
    got = statistics(values)
    finite = sum(map(math.isfinite, values))
    cuts = list(got.percentiles.values())
    assert not any(math.isnan(number) for number in (got.min, got.max, *cuts))
    assert math.isnan(got.std) == math.isnan(got.stderr) == (finite < 2)
    assert math.isnan(got.mean) == (not finite and values.count(math.inf) == values.count(-math.inf))
    slack = 1e-9 * max(1.0, *(abs(value) for value in values if math.isfinite(value)), 1.0)
    assert all(low <= high + slack for low, high in zip([got.min, *cuts], [*cuts, got.max], strict=True))


@given(
    st.lists(
        st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.inf), st.just(-math.inf)), max_size=6),
        min_size=1,
        max_size=20,
    ).filter(any)
)
def test_values_that_come_item_by_item_are_summed_up_as_all_at_once(items: list[list[float]]) -> None:
    stream = Values()
    for item in items:
        stream.add(np.array(item, dtype=np.float64))
    flat = [value for item in items for value in item]
    got, exact = stream.statistics(), statistics(flat)
    assert (got.count, got.infinite, got.min, got.max) == (exact.count, exact.infinite, exact.min, exact.max)
    assert got.percentiles == exact.percentiles
    assert [got.mean, got.std, got.stderr] == pytest.approx(
        [exact.mean, exact.std, exact.stderr], rel=1e-6, abs=1e-6, nan_ok=True
    )
    item, place = stream.at
    assert items[item][place : place + 1] == [max(flat)] or max(flat) == -math.inf


def test_percentiles_of_more_values_than_are_kept() -> None:
    stream = Values(kept=2000)
    for start in range(0, 100_000, 1000):
        stream.add(np.arange(start, start + 1000, dtype=np.float64))
    got = stream.statistics()
    assert (got.count, stream.percentiles_from, got.min, got.max) == (100_000, 2000, 0, 99_999)
    for name, cut in got.percentiles.items():  # four standard deviations of the share below
        share = float(name) / 100
        assert cut / 100_000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000) + 1e-3)


def test_moments_lose_no_digits_to_a_large_mean() -> None:
    rng = np.random.default_rng(5)
    items = [1e8 + rng.normal(rng.normal(), 1.0, (1, n)) for n in rng.integers(2, 30, 40)]
    moments = Moments()
    for each in items:
        moments.add(each)
    values = np.concatenate(items, axis=1)[0]
    assert moments.variance[0] == pytest.approx(values.var(ddof=1), rel=1e-7)
    residuals = np.array([(each[0] - values.mean()).sum() for each in items])
    clustered = moments.clustered()
    assert clustered is not None
    assert clustered[0, 0] == pytest.approx(40 / 39 * (residuals**2).sum() / values.size**2, rel=1e-6)


def test_perplexities() -> None:
    a, b = np.log([0.5, 0.25]), np.log([0.5, 1.0])
    got = perplexities(a, b)
    assert got.a == pytest.approx(math.sqrt(8))
    assert got.b == pytest.approx(math.sqrt(2))
    assert got.ratio == pytest.approx(0.5)
    assert got.ratio == pytest.approx(got.b / got.a)
    assert got.difference == pytest.approx(math.sqrt(2) - math.sqrt(8))


def test_errors_of_perplexities_by_the_formulae_of_llama_cpp() -> None:
    """tools/perplexity/perplexity.cpp: from sums, base being A."""
    rng = np.random.default_rng(3)
    a = -rng.gamma(1.0, size=500)
    b = 0.9 * a - rng.gamma(0.3, 0.2, size=500)
    got, n = perplexities(a, b), 500
    variances = [((x**2).mean() - x.mean() ** 2) / (n - 1) for x in (a, b)]
    covariance = ((a * b).mean() - a.mean() * b.mean()) / (n - 1)
    ppl_a, ppl_b = np.exp(-a.mean()), np.exp(-b.mean())
    assert got.a_stderr == pytest.approx(ppl_a * math.sqrt(variances[0]))
    assert got.b_stderr == pytest.approx(ppl_b * math.sqrt(variances[1]))
    assert got.correlation == pytest.approx(covariance / math.sqrt(variances[0] * variances[1]))
    assert got.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert got.ratio_stderr == pytest.approx(ppl_b / ppl_a * math.sqrt(sum(variances) - 2 * covariance))
    assert got.difference == pytest.approx(ppl_b - ppl_a)
    assert got.difference_stderr == pytest.approx(
        math.sqrt(ppl_b**2 * variances[1] + ppl_a**2 * variances[0] - 2 * ppl_a * ppl_b * covariance)
    )


def test_the_error_of_a_small_difference_keeps_its_digits() -> None:
    rng = np.random.default_rng(4)
    a = -rng.gamma(1.0, size=1000)
    gap = 1e-9 * rng.normal(size=1000)
    got = perplexities(a, a - gap)
    assert got.difference_stderr == pytest.approx(got.a * gap.std(ddof=1) / math.sqrt(1000), rel=1e-3)


def test_equal_models_have_ratio_one_without_error() -> None:
    logprobs = np.log(np.random.default_rng(1).uniform(size=100))
    got = perplexities(logprobs, logprobs)
    assert (got.ratio, got.ratio_stderr, got.difference, got.difference_stderr) == (1.0, 0.0, 0.0, 0.0)
    assert got.correlation == pytest.approx(1.0)


def test_one_token_has_no_errors_and_constants_no_correlation() -> None:
    one = perplexities(np.array([-1.0]), np.array([-2.0]))
    assert (one.a, one.ratio) == (pytest.approx(math.e), pytest.approx(math.e))
    errors = (one.a_stderr, one.b_stderr, one.ratio_stderr, one.difference_stderr, one.correlation)
    assert all(math.isnan(error) for error in errors)
    constant = np.full(7, -0.1)
    assert math.isnan(perplexities(constant, -np.arange(7.0)).correlation)


def test_the_standard_error_of_the_ratio_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(2)
    a = -rng.gamma(1.0, size=(2000, 400))
    b = 0.9 * a - rng.gamma(0.3, 0.2, size=a.shape)  # correlated with a, as two models of one family are
    ratios = [perplexities(*pair) for pair in zip(a, b, strict=True)]
    spread = np.std([ratio.ratio for ratio in ratios], ddof=1)
    assert np.mean([ratio.ratio_stderr for ratio in ratios]) == pytest.approx(spread, rel=0.1)


def test_a_token_that_one_model_excludes() -> None:
    finite, excluded = np.log([0.5, 0.5]), np.array([-math.inf, -0.1])
    without_a, without_b = perplexities(excluded, finite), perplexities(finite, excluded)
    assert (without_a.a, without_a.ratio) == (math.inf, 0.0)
    assert (without_b.b, without_b.ratio) == (math.inf, math.inf)
    # What is infinite, or the exponential of something infinite, has no error; the other model's perplexity has one.
    for got in (without_a, without_b):
        assert math.isnan(got.ratio_stderr)
        assert math.isnan(got.difference_stderr)
        assert math.isnan(got.correlation)
    assert math.isnan(without_a.a_stderr)
    assert math.isfinite(without_b.a_stderr)


def test_infinities_keep_their_sign() -> None:
    assert statistics([-math.inf, -math.inf]).mean == -math.inf
    assert math.isnan(statistics([-math.inf, math.inf]).mean)
    excluded = perplexities(np.array([-1.0, -np.inf]), np.array([-1.0, -np.inf]))
    assert (excluded.ratio, excluded.ratio_stderr) == (1.0, 0.0)
    one_sided = perplexities(np.array([-1.0, -np.inf]), np.array([-1.0, -2.0]))
    assert one_sided.ratio == 0.0


def test_models_that_each_exclude_what_the_other_allows_have_no_ratio() -> None:
    apart = perplexities(np.array([-1.0, -np.inf]), np.array([-np.inf, -1.0]))
    assert (apart.a, apart.b) == (math.inf, math.inf)
    assert math.isnan(apart.ratio)


def test_errors_of_perplexities_that_have_no_square() -> None:
    """exp(600) is a number; its square is none, and needs not be."""
    logps = np.array([-590.0, -610.0, -600.0, -600.0])
    found = perplexities(logps, np.array([-1.0, -2.0, -3.0, -2.0]))
    assert found.a == pytest.approx(math.exp(600))
    assert found.a_stderr == pytest.approx(math.exp(600) * logps.std(ddof=1) / 2)
    assert math.isfinite(found.difference_stderr)


def test_negative_infinities_are_counted() -> None:
    found = statistics([1.0, -math.inf, math.inf, -math.inf, 2.0])
    assert (found.infinite, found.negative_infinite) == (3, 2)
