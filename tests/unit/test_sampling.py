"""Sampling: filters in the stated order, exact replay, and frequencies that match the filtered row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from workers import sampling
from workers.wire import SamplingParams


def log(*probabilities: float) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities])).astype(np.float32)


def kept(rows: Any, **params: Any) -> list[int]:
    return np.flatnonzero(np.isfinite(sampling.scores(rows, SamplingParams(**params))[0])).tolist()


ROW = log(0.1, 0.4, 0.05, 0.25, 0.2)


def test_temperature_zero_takes_the_best_and_the_lowest_id_of_equals() -> None:
    rows = log(0.2, 0.4, 0.4, 0.0)
    assert sampling.choose(rows, SamplingParams(temperature=0), [7]) == [1]
    assert sampling.choose(torch.from_numpy(rows), SamplingParams(temperature=0), [7]) == [1]


def test_top_k_keeps_the_k_best_and_the_lowest_id_of_equals() -> None:
    assert kept(ROW, top_k=2) == [1, 3]
    assert kept(log(0.25, 0.25, 0.25, 0.25), top_k=3) == [0, 1, 2]
    assert kept(ROW, top_k=99) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    assert kept(ROW, top_p=0.39) == [1]
    assert kept(ROW, top_p=0.41) == [1, 3]
    assert kept(ROW, top_p=0.66) == [1, 3, 4]
    assert kept(ROW, top_p=1e-9) == [1]


def test_min_p_is_relative_to_the_best_token() -> None:
    assert kept(ROW, min_p=0.49) == [1, 3, 4]
    assert kept(ROW, min_p=1.0) == [1]


def test_top_p_applies_to_what_top_k_left_renormalised() -> None:
    # Of 0.4 and 0.25 the first is 0.615: alone enough for 0.6, not for 0.62. Without top_k 0.6 needs two tokens.
    assert kept(ROW, top_k=2, top_p=0.6) == [1]
    assert kept(ROW, top_k=2, top_p=0.62) == [1, 3]
    assert kept(ROW, top_p=0.6) == [1, 3]


def test_filters_see_the_tempered_row() -> None:
    # At temperature 1/2 probabilities are squared: 0.4 becomes 0.16 of 0.275, which is 0.582.
    assert kept(ROW, temperature=0.5, top_p=0.57) == [1]
    assert kept(ROW, temperature=1.0, top_p=0.57) == [1, 3]
    assert kept(ROW, temperature=0.5, min_p=0.5) == [1]


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    chosen = sampling.choose(ROW, SamplingParams(temperature=temperature, seed=1), [3])
    assert chosen == [1] if temperature < 1 else 0 <= chosen[0] < 5


def test_excluded_tokens_are_never_drawn() -> None:
    rows = np.repeat(log(0.0, 0.5, 0.0, 0.5), 500, axis=0)
    assert set(sampling.choose(rows, SamplingParams(temperature=1e6, seed=5), range(500))) == {1, 3}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 12},
        {"top_p": 0.8},
        {"temperature": 1.3, "top_k": 15, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_frequencies_match_the_filtered_row(params: dict[str, Any]) -> None:
    draws = 40_000
    row = np.random.default_rng(0).normal(size=(1, 20)).astype(np.float32) * 1.5
    row -= np.log(np.exp(row).sum())
    scores = sampling.scores(row, SamplingParams(**params))[0]
    expected = np.exp(scores) / np.exp(scores).sum()
    chosen = sampling.choose(np.repeat(row, draws, axis=0), SamplingParams(**params, seed=20), range(draws))
    counts = np.bincount(chosen, minlength=20)
    live = expected > 0
    assert counts[~live].sum() == 0
    assert stats.chisquare(counts[live], expected[live] * draws).pvalue > 1e-3


def test_draws_of_neighbouring_positions_and_seeds_are_independent() -> None:
    rows = np.repeat(log(0.5, 0.5), 20_000, axis=0)
    first = np.array(sampling.choose(rows, SamplingParams(seed=1), range(20_000)))
    second = np.array(sampling.choose(rows, SamplingParams(seed=2), range(20_000)))
    for left, right in ((first[:-1], first[1:]), (first, second)):
        table = np.histogram2d(left, right, bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 300)).astype(np.float32)
    params = SamplingParams(seed=2**63 - 1, temperature=1.2, top_p=0.95)
    together = sampling.choose(rows, params, range(100, 150))
    alone = [sampling.choose(rows[i : i + 1], params, [100 + i])[0] for i in range(50)]
    assert together == alone
    assert together != sampling.choose(rows, params, range(101, 151))


def test_numpy_and_torch_draw_the_same() -> None:
    rows = np.random.default_rng(2).normal(size=(200, 301)).astype(np.float32) * 2
    for params in (
        SamplingParams(seed=9),
        SamplingParams(seed=9, temperature=0.6, top_k=40, top_p=0.9, min_p=0.01),
        SamplingParams(temperature=0),
    ):
        assert sampling.choose(rows, params, range(200)) == sampling.choose(torch.from_numpy(rows), params, range(200))


@pytest.mark.parametrize("vocab_size", [1, 5, 287, 1024, 5000])
def test_the_kernel_draws_what_the_arrays_draw(vocab_size: int) -> None:
    generator = np.random.default_rng(vocab_size)
    for scale in (0.0, 1.0, 8.0):
        rows = generator.normal(size=(60, vocab_size)).astype(np.float32) * np.float32(scale)
        rows[generator.random(rows.shape) < 0.2] = -np.inf
        rows[:, vocab_size // 2] = 0.0
        for temperature in (1e-3, 0.7, 1.0, 50.0):
            params = SamplingParams(seed=2**62 + 5, temperature=temperature)
            tokens, gaps = sampling.draw(rows, params, range(7, 67))
            wanted, wanted_gaps = sampling.draw_by_arrays(rows, params, range(7, 67))
            assert tokens == wanted
            np.testing.assert_allclose(gaps, wanted_gaps, rtol=1e-9, atol=1e-9)


def test_noise_is_standard_gumbel() -> None:
    noise = sampling.gumbel(123, range(100), 1001, np.zeros(0)).ravel()
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    assert noise.shape == (100 * 1001,)


def test_top_is_sorted_and_complete() -> None:
    values, ids = sampling.top(ROW, 3)
    assert ids.tolist() == [[1, 3, 4]]
    np.testing.assert_allclose(np.exp(values), [[0.4, 0.25, 0.2]], rtol=1e-6)
    assert sampling.top(ROW, 5)[1].tolist() == [[1, 3, 4, 0, 2]]
    assert sampling.top(torch.from_numpy(ROW), 3)[1].tolist() == [[1, 3, 4]]


@pytest.mark.parametrize("k", [1, 2, 7, 40, 300])
def test_top_takes_the_lowest_ids_of_equals(k: int) -> None:
    """As drawing does at temperature 0: logits in bfloat16 are often equal."""
    coarse = torch.randn(20, 300, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    want = np.argsort(-coarse.numpy(), axis=-1, kind="stable")[:, :k]
    for given in (coarse, coarse.numpy(), coarse.double()):
        values, ids = sampling.top(given, k)
        np.testing.assert_array_equal(np.asarray(ids), want)
        np.testing.assert_array_equal(np.asarray(values), np.take_along_axis(np.asarray(given), want, -1))
    assert np.asarray(sampling.top(coarse, k)[1])[:, 0].tolist() == sampling.choose(
        coarse, SamplingParams(temperature=0), range(20)
    )


def test_tempered_rows_are_normalised() -> None:
    tempered = sampling.at_temperature(log(0.8, 0.2, 0.0), 0.5)
    np.testing.assert_allclose(np.exp(tempered[0]), [0.64 / 0.68, 0.04 / 0.68, 0.0], rtol=1e-6)
    assert math.isinf(tempered[0, 2])


@pytest.mark.parametrize("temperature", [1e-4, 1e-2])
def test_no_temperature_makes_nan(temperature: float) -> None:
    tempered = sampling.at_temperature(log(0.5, 0.3, 0.2, 0.0), temperature)
    np.testing.assert_allclose(np.exp(tempered[0]), [1.0, 0.0, 0.0, 0.0], atol=1e-9)
