"""Policies that ask no signal: controls, replays, and either model alone."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rl_onoff.philox import STREAM_POLICY, uniform
from rl_onoff.policy.machine import BudgetedPolicy, Lead, Policy, PolicyState, Signals, initial_state
from rl_onoff.policy.signals import Probability


class RandomPolicy(BudgetedPolicy):
    """B leads each token with probability `rate`, independently: the rate-matched control of every other policy.

    The draws are a function of the request's seed and the position, independent of the tokens' noise.
    """

    kind: Literal["random"] = "random"
    rate: Probability

    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        return "b" if uniform(signals.seed, signals.position, STREAM_POLICY) < self.rate else "a"


class SchedulePolicy(BudgetedPolicy):
    """B leads exactly the tokens at `positions` (0 is the first generated one): replays and counterfactuals."""

    kind: Literal["schedule"] = "schedule"
    positions: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(sorted)] = Field(max_length=1_000_000)

    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        index = bisect_left(self.positions, state.emitted)
        return "b" if self.positions[index : index + 1] == [state.emitted] else "a"


class AlwaysA(Policy):
    """A alone, judged by B at every token."""

    kind: Literal["always_a"] = "always_a"

    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        return "a"


class AlwaysB(Policy):
    """B alone, judged by A at every token."""

    kind: Literal["always_b"] = "always_b"

    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        return "b"


def first_lead(policy: Policy) -> Lead:
    """Who leads before the first token: a first token by the other is a switch at position 0."""
    return "b" if isinstance(policy, AlwaysB) else initial_state(policy).lead
