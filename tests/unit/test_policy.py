"""The switching state machine: thresholds, dwell, budget, controls, and that a run can be cut anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rl_onoff.kinds import BUILT_IN, AnyPolicy
from rl_onoff.policy import (
    AlwaysA,
    AlwaysB,
    BudgetedPolicy,
    DeltaLogpPolicy,
    DivergencePolicy,
    EntropyPolicy,
    Policy,
    PolicyState,
    RandomPolicy,
    RankPolicy,
    SchedulePolicy,
    Signals,
    TargetFloorPolicy,
    ThresholdPolicy,
    TopProbPolicy,
    TypicalPolicy,
    initial_state,
    step,
)

adapter: TypeAdapter[Policy] = TypeAdapter(AnyPolicy)
Position = dict[str, float]


def walk(
    policy: Policy,
    values: Sequence[float] | Sequence[Position],
    *,
    state: PolicyState | None = None,
    position: int = 0,
    seed: int = 0,
) -> tuple[PolicyState, str]:
    """State and leads after positions given by all their signals, or by the watched one alone."""
    state = state or initial_state(policy)
    leads = ""
    for offset, value in enumerate(values):
        known = value if isinstance(value, dict) else {policy.watched: value}
        state, lead = step(policy, state, Signals(position=position + offset, seed=seed, values=known))
        leads += lead
    return state, leads


def thresholds(cls: type[ThresholdPolicy], cuts: Sequence[float], **fields: st.SearchStrategy[Any]) -> Any:
    """Policies of a class with `on` and `off` among its cuts, in the order it asks for."""

    def build(on: float, off: float | None, **rest: Any) -> ThresholdPolicy:
        if off is not None:
            on, off = sorted([on, off], reverse=not cls.b_below)
        return cls(on=on, off=off, **rest)

    return st.builds(
        build,
        on=st.sampled_from(cuts),
        off=st.sampled_from([None, *cuts]),
        min_dwell=st.integers(1, 5),
        start=st.sampled_from(["a", "b"]),
        max_b_fraction=st.sampled_from([None, None, 0.0, 0.25, 1.0]),
        **fields,
    )


probabilities = [0.0, 0.01, 0.1, 0.5, 0.9, 1.0]
threshold_policies = st.one_of(
    thresholds(DivergencePolicy, [0.0, 0.1, 0.3]),
    thresholds(DeltaLogpPolicy, [-1.0, 0.0, 0.5, 2.0], of=st.sampled_from(["a", "b"])),
    thresholds(EntropyPolicy, [0.0, 0.45, 2.0]),
    thresholds(TopProbPolicy, probabilities),
    thresholds(RankPolicy, [1, 2, 3, 10]),
    thresholds(TargetFloorPolicy, probabilities),
    thresholds(TypicalPolicy, probabilities, delta=st.sampled_from([0.1, 0.9])),
)
policies = st.one_of(
    threshold_policies,
    st.builds(RandomPolicy, rate=st.floats(0, 1), max_b_fraction=st.sampled_from([None, 0.5])),
    st.builds(SchedulePolicy, positions=st.lists(st.integers(0, 30), max_size=10)),
    st.just(AlwaysA()),
    st.just(AlwaysB()),
)
chances = st.sampled_from([0.005, 0.01, 0.3, 0.4, 0.8, 1.0])
positions = st.lists(
    st.fixed_dictionaries(
        {
            "js": st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3]), st.floats(0, math.log(2))),
            "entropy_a": st.sampled_from([0.0, 0.45, 1.0, 3.0]),
            "entropy_b": st.sampled_from([0.0, 0.45, 1.0, 3.0]),
            "top_prob_a": chances,
            "top_prob_b": chances,
            "rank_of_b_in_a": st.sampled_from([1.0, 2.0, 3.0, 4.0, 50.0]),
            "delta_logp_a": st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 3.0]),
            "delta_logp_b": st.sampled_from([-3.0, 0.0, 0.5, 2.5, math.inf]),
            "prob_of_a_in_b": st.sampled_from([0.0, 0.005, 0.01, 0.3, 0.8]),
        }
    ),
    max_size=30,
)


def runs(leads: str) -> list[tuple[int, int]]:
    """Where each run of B begins and ends."""
    return [match.span() for match in re.finditer("b+", leads)]


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
    assert state == PolicyState(lead="a", run=3, emitted=3, by_b=0)


def test_on_zero_switches_at_any_difference_and_only_there() -> None:
    assert walk(DivergencePolicy(on=0.0), [0.0, 1e-300, 0.0])[1] == "aba"


def test_off_above_on_is_refused() -> None:
    with pytest.raises(ValidationError, match="off must not exceed on"):
        DivergencePolicy(on=0.1, off=0.2)


@pytest.mark.parametrize(
    ("policy", "values", "leads"),
    [
        # B's token must be more than e times (1 nat) as likely under B; and from 0 on, with hysteresis down to -1.
        (DeltaLogpPolicy(), [0.0, 1.0, 1.01, 0.5, math.inf, -3.0], "aababa"),
        (DeltaLogpPolicy(on=0.0, off=-1.0), [-0.5, 0.1, -0.5, -1.0, -0.5], "abbaa"),
        (DeltaLogpPolicy(on=-2.0), [-2.5, -1.0], "ab"),
        # of a: recorded as log q - log p, so B leads below the negative of the threshold.
        (DeltaLogpPolicy(of="a"), [0.0, 5.0, -1.0, -1.01, -math.inf, 0.0], "aaabba"),
        (DeltaLogpPolicy(of="a", on=2.0, off=0.5, min_dwell=2), [-1.0, -3.0, 4.0, -1.0, -0.5], "abbba"),
        (EntropyPolicy(), [0.0, 0.45, 0.46, 0.45], "aaba"),
        (EntropyPolicy(on=2.0, off=0.5, min_dwell=3), [1.0, 2.1, 0.0, 0.0, 1.0, 0.5], "abbbba"),
        (TopProbPolicy(), [0.9, 0.4, 0.39, 0.4], "aaba"),
        (TopProbPolicy(on=0.4, off=0.8, min_dwell=2), [0.5, 0.3, 0.9, 0.79, 0.8, 0.5], "abbbaa"),
        (TopProbPolicy(on=0.4, start="b", off=0.8), [0.5, 0.8, 0.5], "baa"),
        (RankPolicy(), [1, 3, 4, 3, 1], "aabaa"),
        (RankPolicy(on=3, off=1), [2, 5, 3, 2, 1, 3], "abbbaa"),
        (RankPolicy(on=1, min_dwell=2), [1, 2, 1, 1], "abba"),
        (RankPolicy(on=1, max_b_fraction=0.5), [2, 2, 2, 2, 1, 2], "ababab"),
    ],
)
def test_policies_of_one_signal(policy: Policy, values: list[float], leads: str) -> None:
    assert walk(policy, values)[1] == leads


def test_a_token_is_kept_above_bs_floor_or_as_its_best() -> None:
    def at(of_a: float, top: float) -> Position:
        return {"prob_of_a_in_b": of_a, "top_prob_b": top}

    values = [at(0.5, 0.5), at(0.01, 0.9), at(0.009, 0.9), at(0.009, 0.009), at(0.0, 0.9)]
    assert walk(TargetFloorPolicy(), values)[1] == "aabab"
    values = [at(0.02, 0.9), at(0.005, 0.9), at(0.02, 0.9), at(0.02, 0.02), at(0.02, 0.9), at(0.1, 0.9)]
    assert walk(TargetFloorPolicy(on=0.01, off=0.1), values)[1] == "abbaaa"
    assert walk(TargetFloorPolicy(on=0.01, off=0.1, min_dwell=4), values)[1] == "abbbba"


def test_a_token_is_kept_while_it_is_typical_of_b() -> None:
    def at(of_a: float, entropy: float) -> Position:
        return {"prob_of_a_in_b": of_a, "entropy_b": entropy}

    # At entropy 0 the bound is min(0.09, 0.3) = 0.09, at entropy ln 10 it is min(0.09, 0.03) = 0.03.
    wide = math.log(10)
    values = [at(0.1, 0.0), at(0.09, 0.0), at(0.1, 0.0), at(0.031, wide), at(0.029, wide), at(0.0, wide)]
    assert walk(TypicalPolicy(), values)[1] == "abaabb"
    values = [at(0.1, 0.0), at(0.05, 0.0), at(0.1, 0.0), at(0.2, 0.0), at(0.21, 0.0), at(0.1, 0.0)]
    assert walk(TypicalPolicy(on=0.09, off=0.2, delta=0.5), values)[1] == "abbbaa"


def test_every_kind_is_tested_here() -> None:
    covered = {DivergencePolicy, DeltaLogpPolicy, EntropyPolicy, TopProbPolicy, RankPolicy, TargetFloorPolicy}
    assert {*BUILT_IN.values()} == covered | {TypicalPolicy, RandomPolicy, SchedulePolicy, AlwaysA, AlwaysB}


@given(policies, positions)
def test_a_run_can_be_cut_and_resumed_anywhere(policy: Policy, values: list[Position]) -> None:
    state, leads = walk(policy, values, position=7, seed=3)
    for cut in range(len(values) + 1):
        middle, first = walk(policy, values[:cut], position=7, seed=3)
        resumed, second = walk(policy, values[cut:], state=middle, position=7 + cut, seed=3)
        assert (resumed, first + second) == (state, leads)


@given(policies, positions)
def test_the_state_is_a_function_of_the_leads(policy: Policy, values: list[Position]) -> None:
    state, leads = walk(policy, values)
    assert (state.emitted, state.by_b) == (len(leads), leads.count("b"))
    if leads:
        started = initial_state(policy)
        before = started.run if {leads[-1]} == {*leads} and started.lead == leads[-1] else 0
        assert (state.lead, state.run) == (leads[-1], before + len(leads) - len(leads.rstrip(leads[-1])))


@given(policies, positions)
def test_a_policy_reads_what_it_says(policy: Policy, values: list[Position]) -> None:
    known = [{name: value[name] for name in policy.signals} for value in values]
    assert policy.watched in {"js"} | policy.signals
    assert walk(policy, known) == walk(policy, values)


@given(policies, positions, st.floats(0, 1))
def test_the_budget_holds_at_every_prefix(policy: Policy, values: list[Position], cap: float) -> None:
    if not isinstance(policy, BudgetedPolicy):
        return
    _, leads = walk(policy.model_copy(update={"max_b_fraction": cap}), values)
    assert all(leads[:end].count("b") <= cap * end for end in range(1, len(leads) + 1))


@given(threshold_policies, positions)
def test_b_keeps_its_dwell_unless_the_budget_or_the_end_cuts_it(
    policy: ThresholdPolicy, values: list[Position]
) -> None:
    cap = 1.0 if policy.max_b_fraction is None else policy.max_b_fraction
    _, leads = walk(policy, values)
    for begin, end in runs(leads):
        started = begin == 0 and policy.start == "b"
        spent = leads[:end].count("b") + 1 > cap * (end + 1)
        assert end - begin >= policy.min_dwell or started or spent or end == len(leads)


@given(threshold_policies, positions)
def test_the_lead_changes_at_its_threshold_only(policy: ThresholdPolicy, values: list[Position]) -> None:
    policy = policy.model_copy(update={"max_b_fraction": None})
    _, leads = walk(policy, values)
    off = policy.on if policy.off is None else policy.off
    for i, (was, now) in enumerate(pairwise(policy.start + leads)):
        over, under = policy.beyond(policy.on, values[i]), not policy.beyond(off, values[i])
        assert not (over and under)
        assert (now == "b") >= over  # past `on` B leads, whoever did
        assert under or now == was or over
        assert (was, now) != ("b", "a") or under


def test_random_is_a_function_of_seed_and_position_and_keeps_its_rate() -> None:
    policy = RandomPolicy(rate=0.2)
    zeros = [0.0] * 5000
    _, leads = walk(policy, zeros, seed=1)
    assert leads == walk(policy, [math.inf] * 5000, seed=1)[1]
    assert leads != walk(policy, zeros, seed=2)[1]
    assert walk(policy, zeros[:100], position=50, seed=1)[1] == leads[50:150]
    assert abs(leads.count("b") / 5000 - 0.2) < 0.02


def test_random_at_the_ends() -> None:
    assert walk(RandomPolicy(rate=0.0), [1.0] * 50)[1] == "a" * 50
    assert walk(RandomPolicy(rate=1.0), [0.0] * 50)[1] == "b" * 50


def test_a_schedule_is_followed() -> None:
    policy = SchedulePolicy(positions=[0, 2, 3, 9])
    assert walk(policy, [0.0] * 5, position=100)[1] == "babba"


def test_the_order_of_a_schedule_does_not_matter_and_a_long_one_is_quick() -> None:
    policy = SchedulePolicy(positions=[4, 0, 2, 0])
    assert walk(policy, [0.0] * 6)[1] == "bababa"
    long = SchedulePolicy(positions=list(range(1_000_000, 0, -1)))
    assert walk(long, [0.0] * 2000)[1] == "a" + "b" * 1999


def test_one_model_alone() -> None:
    assert walk(AlwaysA(), [0.6] * 3)[1] == "aaa"
    assert walk(AlwaysB(), [0.0] * 3)[1] == "bbb"


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
        {"kind": "divergence", "measure": "topk_overlap:3"},
        {"kind": "divergence", "measure": "renyi:0"},
        {"kind": "divergence", "min_dwell": 0},
        {"kind": "divergence", "threshold": 0.1},
        {"kind": "random", "rate": 1.5},
        {"kind": "random"},
        {"kind": "schedule", "positions": [-1]},
        {"kind": "top_prob", "on": 0.4, "off": 0.3},
        {"kind": "target_floor", "on": 0.01, "off": 0.001},
        {"kind": "typical", "delta": 1.0},
        {"kind": "rank", "on": 0},
        {"kind": "rank", "on": 3, "off": 4},
        {"kind": "delta_logp", "of": "c"},
        {"kind": "delta_logp", "on": math.inf},
        {"kind": "entropy", "measure": "entropy_b"},
        {"kind": "always_a", "max_b_fraction": 0.5},
    ],
)
def test_wrong_policies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_python(wrong)


@pytest.mark.parametrize("cap", [0.29, 0.57, 0.58, 0.7])
def test_a_budget_is_spent_to_its_last_token(cap: float) -> None:
    """0.29 * 100 is less than 29 in floating point; 29 / 100 is not more than 0.29."""
    _, leads = walk(DivergencePolicy(on=0.0, max_b_fraction=cap), [1.0] * 100)
    assert leads.count("b") == round(100 * cap)
