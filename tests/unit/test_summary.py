"""Summaries against numpy and scipy, with infinities, and the perplexity ratio against a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl_onoff.summary import PERCENTILES, perplexities, statistics


def test_moments_and_percentiles() -> None:
    values = np.random.default_rng(0).gamma(0.2, size=1000)
    got = statistics(values)
    assert (got.count, got.infinite) == (1000, 0)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert got.std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert got.stderr == pytest.approx(stats.sem(values), rel=1e-12)
    assert (got.min, got.max) == (values.min(), values.max())
    assert list(got.percentiles) == ["0.1", "1", "5", "10", "50", "90", "95", "99", "99.9"]
    assert list(got.percentiles.values()) == pytest.approx(np.percentile(values, PERCENTILES), rel=1e-12)


def test_one_value() -> None:
    got = statistics([0.5])
    assert (got.count, got.mean, got.std, got.stderr, got.min, got.max) == (1, 0.5, 0.0, 0.0, 0.5, 0.5)
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
    assert (got.infinite, got.mean, got.std, got.stderr) == (2, math.inf, 0.0, 0.0)
    assert set(got.percentiles.values()) == {math.inf}


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.nan]])
def test_no_values_and_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value and no NaN"):
        statistics(values)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.inf), st.just(-math.inf)), min_size=1, max_size=50))
def test_never_nan_and_always_in_order(values: list[float]) -> None:
    got = statistics(values)
    cuts = list(got.percentiles.values())
    assert not any(math.isnan(number) for number in (got.mean, got.std, got.stderr, got.min, got.max, *cuts))
    slack = 1e-9 * max(1.0, *(abs(value) for value in values if math.isfinite(value)), 1.0)
    assert all(low <= high + slack for low, high in zip([got.min, *cuts], [*cuts, got.max], strict=True))


def test_perplexities() -> None:
    a, b = np.log([0.5, 0.25]), np.log([0.5, 1.0])
    got = perplexities(a, b)
    assert got.a == pytest.approx(math.sqrt(8))
    assert got.b == pytest.approx(math.sqrt(2))
    assert got.ratio == pytest.approx(0.5)
    assert got.ratio == pytest.approx(got.b / got.a)


def test_equal_models_have_ratio_one_without_error() -> None:
    logprobs = np.log(np.random.default_rng(1).uniform(size=100))
    got = perplexities(logprobs, logprobs)
    assert (got.ratio, got.ratio_stderr) == (1.0, 0.0)


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


def test_infinities_keep_their_sign_and_never_become_nan() -> None:
    assert statistics([-math.inf, -math.inf]).mean == -math.inf
    assert statistics([-math.inf, math.inf]).mean == 0.0
    excluded = perplexities(np.array([-1.0, -np.inf]), np.array([-1.0, -np.inf]))
    assert (excluded.ratio, excluded.ratio_stderr) == (1.0, 0.0)
    one_sided = perplexities(np.array([-1.0, -np.inf]), np.array([-1.0, -2.0]))
    assert not math.isnan(one_sided.ratio)
    assert not math.isnan(one_sided.ratio_stderr)


def test_models_that_each_exclude_what_the_other_allows_have_no_ratio() -> None:
    apart = perplexities(np.array([-1.0, -np.inf]), np.array([-np.inf, -1.0]))
    assert (apart.a, apart.b) == (math.inf, math.inf)
    assert math.isnan(apart.ratio)
