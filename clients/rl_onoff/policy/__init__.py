"""Who leads at the next token: switching policies as a pure state machine.

    state, lead = step(policy, state, signals)

`step` sees the signals at one position and what happened before, nothing else: no model, no text, no clock. So a
run can be replayed, resumed at any position after a crash, and walked over drafted tokens, with the same result.

A position's `lead` names the model whose row the token is drawn from. In every policy a model leads from the very
token at which the rule asks for it.

Signals are the measures of the two rows (`rl_onoff.divergence`) and three that also know which token each model would
emit here, since both draw with the same noise:

    delta_logp_a      log q - log p of A's token, in nats: -inf where B excludes it
    delta_logp_b      log q - log p of B's token, in nats: +inf where A excludes it
    prob_of_a_in_b    B's probability of A's token

Which policies there are, and how to add one: `rl_onoff.kinds`.
"""

from __future__ import annotations

from rl_onoff.policy.controls import AlwaysA, AlwaysB, RandomPolicy, SchedulePolicy, first_lead
from rl_onoff.policy.machine import BudgetedPolicy, Lead, Policy, PolicyState, Signals, initial_state, state_after, step
from rl_onoff.policy.signals import TOKEN_SIGNALS, Nats, OneOf, PolicyMeasure, Probability
from rl_onoff.policy.thresholds import (
    DeltaLogpPolicy,
    DivergencePolicy,
    EntropyPolicy,
    RankPolicy,
    TargetFloorPolicy,
    ThresholdPolicy,
    TopProbPolicy,
    TypicalPolicy,
)

__all__ = [
    "TOKEN_SIGNALS",
    "AlwaysA",
    "AlwaysB",
    "BudgetedPolicy",
    "DeltaLogpPolicy",
    "DivergencePolicy",
    "EntropyPolicy",
    "Lead",
    "Nats",
    "OneOf",
    "Policy",
    "PolicyMeasure",
    "PolicyState",
    "Probability",
    "RandomPolicy",
    "RankPolicy",
    "SchedulePolicy",
    "Signals",
    "TargetFloorPolicy",
    "ThresholdPolicy",
    "TopProbPolicy",
    "TypicalPolicy",
    "first_lead",
    "initial_state",
    "state_after",
    "step",
]
