"""The statistics of a comparison against numpy, simulations and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rl_onoff.statistics import Buckets, Comparison, ItemColumns, clustered_stderr, summarise
from rl_onoff.summary import perplexities, statistics


def item(seed: int, length: int, shift: float = 0.0) -> ItemColumns:
    rng = np.random.default_rng(seed)
    a = -rng.gamma(1.0, size=length)
    return ItemColumns(
        measures={"js": rng.gamma(0.2, size=length) + shift, "kl_ab": rng.gamma(0.3, size=length)},
        logprobs_a=a,
        logprobs_b=0.9 * a - 0.01,
        top1_agree=(rng.random(length) < 0.8).astype(float),
        top_prob_a=rng.random(length),
        rank=rng.integers(1, 6, length).astype(float),
    )


def test_everything_of_two_items() -> None:
    items = [item(1, 40), item(2, 60, shift=0.5)]
    got = summarise(items)
    js = np.concatenate([each.measures["js"] for each in items])
    a, b = (np.concatenate([getattr(each, name) for each in items]) for name in ("logprobs_a", "logprobs_b"))
    rank = np.concatenate([each.rank for each in items])
    assert (got.positions, got.items) == (100, 2)
    exact, found = statistics(js), got.measures["js"].statistics
    assert (found.count, found.min, found.max, found.percentiles) == (100, exact.min, exact.max, exact.percentiles)
    assert (found.mean, found.std, found.stderr) == pytest.approx((exact.mean, exact.std, exact.stderr), rel=1e-13)
    index = int(js.argmax())
    at = got.measures["js"].at
    assert (at.item, at.position) == ((0, index) if index < 40 else (1, index - 40))
    whole = perplexities(a, b)
    for name in ("a", "b", "ratio", "difference", "a_stderr", "difference_stderr", "correlation"):
        assert getattr(got.perplexity, name) == pytest.approx(getattr(whole, name), rel=1e-12), name
    assert whole.a_clustered_stderr is None
    delta = np.exp(b) - np.exp(a)
    assert got.rms_delta_p.value == pytest.approx(math.sqrt((delta**2).mean()))
    assert got.mean_delta_p.value == got.delta_p.statistics.mean == pytest.approx(delta.mean())
    assert (got.delta_p.statistics.min, got.delta_p.statistics.max) == (delta.min(), delta.max())
    assert got.delta_p.statistics.percentiles["75"] == np.percentile(delta, 75)
    at = int(delta.argmax())
    assert (got.delta_p.at.item, got.delta_p.at.position) == ((0, at) if at < 40 else (1, at - 40))
    ids = np.repeat([0, 1], [40, 60])
    assert got.delta_p.clustered_stderr == pytest.approx(clustered_stderr(delta, ids))
    assert got.measures["js"].clustered_stderr == pytest.approx(clustered_stderr(js, ids))
    assert got.top1_agreement.clustered_stderr == pytest.approx(
        clustered_stderr(np.concatenate([each.top1_agree for each in items]), ids)
    )
    shares = {name: share.value for name, share in got.shifts.items()}
    assert shares == {
        "unshifted": pytest.approx((rank == 1).mean()),
        "marginal": pytest.approx(((rank == 2) | (rank == 3)).mean()),
        "shifted": pytest.approx((rank > 3).mean()),
    }
    assert sum(shares.values()) == pytest.approx(1)
    for made in (got.by_confidence, got.by_position):
        assert sum(bucket.count for bucket in made) == 100
        total = sum(bucket.count * bucket.means["js"] for bucket in made if bucket.count)
        assert total == pytest.approx(js.sum())
    assert [bucket.count for bucket in got.by_position] == [10] * 10


def test_the_clustered_error_is_that_of_repeated_samples() -> None:
    """Items with a level of their own: the error over tokens is far too small, the clustered one right."""
    rng = np.random.default_rng(0)
    means, clustered, naive = [], [], []
    for _ in range(600):
        lengths = rng.integers(5, 40, 30)
        ids = np.repeat(np.arange(30), lengths)
        values = np.repeat(rng.normal(size=30), lengths) + 0.3 * rng.normal(size=ids.size)
        means.append(values.mean())
        error = clustered_stderr(values, ids)
        assert error is not None
        clustered.append(error)
        naive.append(values.std(ddof=1) / math.sqrt(values.size))
    assert np.mean(clustered) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(naive) < 0.4 * np.std(means)


def test_one_item_has_no_error_by_item() -> None:
    got = summarise([item(3, 10)])
    assert got.top1_agreement.clustered_stderr is got.perplexity.ratio_clustered_stderr is None
    assert got.measures["js"].clustered_stderr is None


def test_items_of_one_token_give_the_plain_error() -> None:
    values = np.random.default_rng(4).normal(size=50)
    assert clustered_stderr(values, np.arange(50)) == pytest.approx(statistics(values).stderr)


def test_infinite_values_are_counted_and_located() -> None:
    one = item(5, 4)
    columns = {"kl_ab": np.array([0.1, math.inf, 0.3, 0.2])}
    got = summarise([ItemColumns(columns, *(getattr(one, name) for name in ItemColumns.__slots__[1:]))])
    measured = got.measures["kl_ab"]
    assert (measured.statistics.infinite, measured.at.position) == (1, 1)
    assert measured.statistics.mean == pytest.approx(0.2)
    assert all(not math.isinf(bucket.means["kl_ab"]) for bucket in got.by_position)


def test_equal_models() -> None:
    zero = np.zeros(6)
    got = summarise([ItemColumns({"js": zero}, zero - 1, zero - 1, zero + 1, zero + 0.5, zero + 1)] * 2)
    assert (got.rms_delta_p.value, got.rms_delta_p.stderr) == (0.0, 0.0)
    assert got.perplexity.ratio == 1.0
    assert (got.top1_agreement.value, got.top1_agreement.clustered_stderr) == (1.0, 0.0)
    assert got.shifts["unshifted"].value == 1.0


def test_the_last_bucket_holds_its_upper_edge_and_an_empty_one_has_no_mean() -> None:
    buckets = Buckets([0.0, 0.5, 0.9, 1.0])
    buckets.add(np.array([0.0, 0.49, 1.0]), {"js": np.array([1.0, 2.0, 3.0])})
    made = buckets.means()
    assert [bucket.count for bucket in made] == [2, 0, 1]
    assert made[0].means["js"] == 1.5
    assert math.isnan(made[1].means["js"])


def test_one_token_has_no_errors() -> None:
    one = item(6, 1)
    got = summarise([one])
    estimates = (got.top1_agreement, got.rms_delta_p, got.mean_delta_p, *got.shifts.values())
    assert all(math.isnan(each.stderr) and each.clustered_stderr is None for each in estimates)
    assert math.isnan(got.measures["js"].statistics.stderr)
    assert math.isnan(got.perplexity.a_stderr)
    # Of two items with a token each there are both, and they are the same but for what is equal by chance.
    two = summarise([one, item(7, 1)])
    assert two.mean_delta_p.stderr == pytest.approx(two.mean_delta_p.clustered_stderr)


def clusters(rng: np.random.Generator) -> list[ItemColumns]:
    """Thirty items whose level of log-probability is their own, and shared by the models."""
    made = []
    for length in rng.integers(5, 40, 30):
        a = -np.exp(rng.normal(0, 0.5)) * rng.gamma(2.0, 0.4, length)
        b = 0.9 * a - rng.gamma(0.3, 0.2, length) * np.exp(rng.normal(0, 0.5))
        ones = np.ones(length)
        made.append(ItemColumns({"js": ones}, a, b, ones, ones, ones))
    return made


def test_clustered_errors_of_perplexities_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(8)
    found = [summarise(clusters(rng)).perplexity for _ in range(500)]
    for name in ("a", "b", "ratio", "difference"):
        spread = np.std([getattr(each, name) for each in found])
        told = np.mean([getattr(each, f"{name}_clustered_stderr") for each in found])
        assert told == pytest.approx(spread, rel=0.1), name
        if name != "ratio":
            assert np.mean([getattr(each, f"{name}_stderr") for each in found]) < 0.7 * spread, name


def test_clustered_errors_of_perplexities_by_their_formula() -> None:
    items = clusters(np.random.default_rng(9))
    got = summarise(items).perplexity
    ids = np.repeat(np.arange(30), [each.logprobs_a.size for each in items])
    a, b = (np.concatenate([getattr(each, name) for each in items]) for name in ("logprobs_a", "logprobs_b"))
    ppl_a, ppl_b = np.exp(-a.mean()), np.exp(-b.mean())
    assert got.a_clustered_stderr == pytest.approx(clustered_stderr(ppl_a * a, ids))
    assert got.difference_clustered_stderr == pytest.approx(clustered_stderr(ppl_a * a - ppl_b * b, ids))
    assert got.ratio_clustered_stderr == pytest.approx(clustered_stderr(ppl_b / ppl_a * (a - b), ids))


def test_items_of_different_measures_do_not_mix() -> None:
    comparison, one = Comparison(), item(1, 3)
    comparison.add(one)
    with pytest.raises(ValueError, match="measured by js, kl_ab and by js"):
        comparison.add(ItemColumns({"js": one.measures["js"]}, *(getattr(one, n) for n in ItemColumns.__slots__[1:])))


def test_a_key_that_is_an_edge_but_for_rounding_belongs_above_it() -> None:
    buckets = Buckets([0.0, 0.3, 0.5, 1.0])
    buckets.add(np.array([0.1 + 0.2, 0.3 - 1e-9, 0.5 - 5e-9, 0.4999, 1.0]), {})
    assert [bucket.count for bucket in buckets.means()] == [0, 3, 2]
