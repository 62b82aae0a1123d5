"""What passes cost: measured beforehand, or fitted to the calls seen."""

from __future__ import annotations

import pytest

from workers.costs import FittedCosts, MeasuredCosts


def fitted(base: float, slope: float, sizes: tuple[int, ...]) -> FittedCosts:
    made = FittedCosts()
    for _ in range(10):
        for tokens in sizes:
            made.observe(tokens, base + slope * tokens)
    return made


def test_measured_costs_lie_between_the_points_and_go_on_beyond_them() -> None:
    measured = MeasuredCosts({(1, 1): 1.0, (1, 4): 1.3, (8, 1): 2.0, (8, 4): 5.0})
    assert measured.seconds(1, 4) == 1.3
    assert measured.seconds(8, 2) == pytest.approx(3.0)
    assert measured.seconds(4, 1) == pytest.approx(1 + 3 / 7)
    assert measured.seconds(8, 8) == pytest.approx(9.0)
    assert measured.seconds(15, 1) == pytest.approx(3.0)


def test_measured_costs_never_fall_with_the_size_of_a_pass() -> None:
    measured = MeasuredCosts({(1, 1): 1.0, (1, 4): 0.9, (8, 1): 0.8, (8, 4): 2.0})
    assert measured.seconds(1, 4) == 1.0
    assert measured.seconds(8, 1) == 1.0


def test_one_point_is_all_there_is_where_contexts_or_caches_are_tiny() -> None:
    assert MeasuredCosts({(1, 1): 0.5}).seconds(3, 4) == 0.5


def test_fitted_costs_are_a_line_through_the_calls_seen() -> None:
    assert FittedCosts().seconds(1, 1) is None
    line = fitted(0.03, 0.002, (8, 32, 64))
    for tokens in (1, 8, 50, 128):
        assert line.seconds(1, tokens) == pytest.approx(0.03 + 0.002 * tokens, rel=0.02)
    assert line.seconds(2, 8) == line.seconds(1, 16)


def test_calls_of_one_size_leave_the_assumed_slope() -> None:
    line = fitted(1.0, 0.0, (1,))
    assert line.seconds(1, 1) == pytest.approx(1.0)
    assert line.seconds(1, 11) == pytest.approx(1 + 10 * FittedCosts.SLOPE)


def test_fitted_costs_follow_the_machine_but_not_one_stray_call() -> None:
    line = fitted(1.0, 0.01, (1, 4, 8))
    before = line.seconds(1, 8)
    line.observe(8, 1000.0)
    after = line.seconds(1, 8)
    assert before is not None
    assert after is not None
    assert after < 1.3 * before
    for _ in range(200):
        line.observe(8, 3.0)
    assert line.seconds(1, 8) == pytest.approx(3.0, rel=0.05)


def test_fitted_costs_never_fall_below_nothing() -> None:
    falling = FittedCosts()
    for tokens, seconds in ((1, 1.0), (100, 0.1)) * 20:
        falling.observe(tokens, seconds)
        assert (falling.seconds(1, 1000) or 0) > 0
