"""The state machine: what a policy is, and how it advances by one token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rl_onoff.policy.signals import SIGNALS, Probability

Lead = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """Everything a policy remembers: a function of the leads so far."""

    lead: Lead = "a"
    run: int = 0  # tokens the present leader has led without a break
    emitted: int = 0
    by_b: int = 0


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known at one position before its token is chosen.

    `position` counts from the start of the sequence, prompt included; `values` holds at least the policy's `signals`.
    """

    position: int
    seed: int
    values: Mapping[str, float]


class Policy(BaseModel):
    """Base of all policies. A subclass gives `kind` a `Literal` type, its own fields, and `wants`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: str

    @property
    def watched(self) -> str:
        """The signal logged beside every token and switch."""
        return "js"

    @property
    def signals(self) -> frozenset[str]:
        """All that `wants` reads."""
        return frozenset({self.watched})

    def initial_state(self) -> PolicyState:
        """Before the first token, which is judged like every other."""
        return PolicyState()

    @abstractmethod
    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        """Who should lead this token. Pure: the same arguments give the same answer."""

    @model_validator(mode="after")
    def _signals_exist(self) -> Policy:
        unknown = sorted(name for name in self.signals | {self.watched} if not SIGNALS.allows(name))
        if unknown:
            raise ValueError(f"this policy reads signals that do not exist: {', '.join(unknown)}")
        return self


class BudgetedPolicy(Policy):
    """A policy whose use of B can be capped: A leads where the cap forbids B."""

    max_b_fraction: Probability | None = Field(
        default=None,
        description="B leads a token only while its share of all tokens so far, this one included, stays within.",
    )


def initial_state(policy: Policy) -> PolicyState:
    """Before the first token."""
    return policy.initial_state()


def step(policy: Policy, state: PolicyState, signals: Signals) -> tuple[PolicyState, Lead]:
    """Advance by one token: the state after it, and who leads it."""
    lead = policy.wants(state, signals)
    cap = policy.max_b_fraction if isinstance(policy, BudgetedPolicy) else None
    if lead == "b" and cap is not None and (state.by_b + 1) / (state.emitted + 1) > cap:
        lead = "a"
    return _after(state, lead), lead


def state_after(policy: Policy, leads: Iterable[Lead], first: PolicyState | None = None) -> PolicyState:
    """The state once these models have led one token each, from `first` (default: the policy's initial state) on."""
    return reduce(_after, leads, initial_state(policy) if first is None else first)


def _after(state: PolicyState, lead: Lead) -> PolicyState:
    return replace(
        state,
        lead=lead,
        run=state.run + 1 if lead == state.lead else 1,
        emitted=state.emitted + 1,
        by_b=state.by_b + (lead == "b"),
    )
