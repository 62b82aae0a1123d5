"""The statistics of a comparison against numpy, simulations and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rl_onoff.statistics import ItemColumns, buckets, clustered_stderr, summarise
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
    assert got.measures["js"].statistics == statistics(js)
    index = int(js.argmax())
    at = got.measures["js"].at
    assert (at.item, at.position) == ((0, index) if index < 40 else (1, index - 40))
    assert got.perplexity == perplexities(a, b)
    delta = np.exp(b) - np.exp(a)
    assert got.rms_delta_p.value == pytest.approx(math.sqrt((delta**2).mean()))
    assert got.mean_delta_p.value == pytest.approx(delta.mean())
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
    assert got.top1_agreement.clustered_stderr is got.ratio_clustered_stderr is None
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
    made = buckets(np.array([0.0, 0.49, 1.0]), [0.0, 0.5, 0.9, 1.0], {"js": np.array([1.0, 2.0, 3.0])})
    assert [bucket.count for bucket in made] == [2, 0, 1]
    assert made[0].means["js"] == 1.5
    assert math.isnan(made[1].means["js"])
