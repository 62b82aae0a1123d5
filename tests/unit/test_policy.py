"""The switching state machine: thresholds, dwell, budget, controls, and that a run can be cut anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rl_onoff.policy import (
    AlwaysA,
    AlwaysB,
    DivergencePolicy,
    Policy,
    PolicyState,
    RandomPolicy,
    SchedulePolicy,
    Signals,
    initial_state,
    step,
)

adapter: TypeAdapter[Policy] = TypeAdapter(Policy)


def walk(
    policy: Policy, values: Sequence[float], *, state: PolicyState | None = None, position: int = 0, seed: int = 0
) -> tuple[PolicyState, str]:
    state = state or initial_state(policy)
    leads = ""
    for offset, value in enumerate(values):
        signals = Signals(position=position + offset, seed=seed, values={policy.watched: value})
        state, lead = step(policy, state, signals)
        leads += lead
    return state, leads


policies = st.one_of(
    st.builds(
        DivergencePolicy,
        on=st.just(0.3),
        off=st.sampled_from([None, 0.0, 0.1, 0.3]),
        min_dwell=st.integers(1, 5),
        start=st.sampled_from(["a", "b"]),
        max_b_fraction=st.sampled_from([None, 0.0, 0.25, 1.0]),
    ),
    st.builds(RandomPolicy, kind=st.just("random"), rate=st.floats(0, 1), max_b_fraction=st.sampled_from([None, 0.5])),
    st.builds(SchedulePolicy, kind=st.just("schedule"), positions=st.lists(st.integers(0, 30), max_size=10)),
    st.just(AlwaysA(kind="always_a")),
    st.just(AlwaysB(kind="always_b")),
)
measures = st.lists(st.one_of(st.floats(0, math.log(2)), st.just(math.inf)), max_size=30)


def test_b_leads_from_the_very_token_that_exceeds_the_threshold() -> None:
    assert walk(DivergencePolicy(on=0.1), [0.0, 0.1, 0.11, 0.1, 0.5, 0.0])[1] == "aababa"


def test_the_first_token_is_judged() -> None:
    assert walk(DivergencePolicy(on=0.1), [0.2])[1] == "b"


def test_an_infinite_divergence_exceeds_every_threshold() -> None:
    assert walk(DivergencePolicy(measure="kl_ab", on=1e300), [math.inf, 0.0])[1] == "ba"


def test_between_off_and_on_the_leader_stays() -> None:
    assert walk(DivergencePolicy(on=0.3, off=0.1), [0.2, 0.4, 0.2, 0.11, 0.1, 0.2])[1] == "abbbaa"


def test_b_keeps_min_dwell_tokens() -> None:
    assert walk(DivergencePolicy(on=0.1, min_dwell=3), [0.2, 0.0, 0.0, 0.0, 0.2])[1] == "bbbab"


def test_a_b_that_starts_is_judged_from_the_first_token_and_owes_no_dwell() -> None:
    state, leads = walk(DivergencePolicy(on=0.1, start="b", min_dwell=2), [0.0, 0.0, 0.0])
    assert leads == "aaa"
    assert state == PolicyState(lead="a", run=1, emitted=3, by_b=2)


def test_on_zero_switches_at_any_difference_and_only_there() -> None:
    assert walk(DivergencePolicy(on=0.0), [0.0, 1e-300, 0.0])[1] == "aba"


def test_off_above_on_is_refused() -> None:
    with pytest.raises(ValidationError, match="off must not exceed on"):
        DivergencePolicy(on=0.1, off=0.2)


@given(policies, measures)
def test_a_run_can_be_cut_and_resumed_anywhere(policy: Policy, values: list[float]) -> None:
    state, leads = walk(policy, values, position=7, seed=3)
    for cut in range(len(values) + 1):
        middle, first = walk(policy, values[:cut], position=7, seed=3)
        resumed, second = walk(policy, values[cut:], state=middle, position=7 + cut, seed=3)
        assert (resumed, first + second) == (state, leads)


@given(policies, measures)
def test_the_state_counts_what_was_emitted(policy: Policy, values: list[float]) -> None:
    state, leads = walk(policy, values)
    assert (state.emitted, state.by_b) == (len(leads), leads.count("b"))
    if leads:
        assert state.lead == leads[-1]


@given(policies, measures, st.floats(0, 1))
def test_the_budget_holds_at_every_prefix(policy: Policy, values: list[float], cap: float) -> None:
    if isinstance(policy, AlwaysA | AlwaysB):
        return
    _, leads = walk(policy.model_copy(update={"max_b_fraction": cap}), values)
    assert all(leads[:end].count("b") <= cap * end for end in range(1, len(leads) + 1))


def test_random_is_a_function_of_seed_and_position_and_keeps_its_rate() -> None:
    policy = RandomPolicy(kind="random", rate=0.2)
    zeros = [0.0] * 5000
    _, leads = walk(policy, zeros, seed=1)
    assert leads == walk(policy, [math.inf] * 5000, seed=1)[1]
    assert leads != walk(policy, zeros, seed=2)[1]
    assert walk(policy, zeros[:100], position=50, seed=1)[1] == leads[50:150]
    assert abs(leads.count("b") / 5000 - 0.2) < 0.02


def test_random_at_the_ends() -> None:
    assert walk(RandomPolicy(kind="random", rate=0.0), [1.0] * 50)[1] == "a" * 50
    assert walk(RandomPolicy(kind="random", rate=1.0), [0.0] * 50)[1] == "b" * 50


def test_a_schedule_is_followed() -> None:
    policy = SchedulePolicy(kind="schedule", positions=[0, 2, 3, 9])
    assert walk(policy, [0.0] * 5, position=100)[1] == "babba"


def test_the_order_of_a_schedule_does_not_matter_and_a_long_one_is_quick() -> None:
    policy = SchedulePolicy(kind="schedule", positions=[4, 0, 2, 0])
    assert walk(policy, [0.0] * 6)[1] == "bababa"
    long = SchedulePolicy(kind="schedule", positions=list(range(1_000_000, 0, -1)))
    assert walk(long, [0.0] * 2000)[1] == "a" + "b" * 1999


def test_one_model_alone() -> None:
    assert walk(AlwaysA(kind="always_a"), [0.6] * 3)[1] == "aaa"
    assert walk(AlwaysB(kind="always_b"), [0.0] * 3)[1] == "bbb"


@given(policies)
def test_policies_round_trip_through_json(policy: Policy) -> None:
    assert adapter.validate_json(adapter.dump_json(policy)) == policy


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "nonsense"},
        {"kind": "divergence", "on": -1},
        {"kind": "divergence", "on": "0.1"},
        {"kind": "divergence", "measure": "delta_logp"},
        {"kind": "divergence", "min_dwell": 0},
        {"kind": "divergence", "threshold": 0.1},
        {"kind": "random", "rate": 1.5},
        {"kind": "random"},
        {"kind": "schedule", "positions": [-1]},
    ],
)
def test_wrong_policies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_python(wrong)
