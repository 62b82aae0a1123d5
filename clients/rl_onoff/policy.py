"""Who leads at the next token: switching policies as a pure state machine.

    state, lead = step(policy, state, signals)

`step` sees the measures at one position and what happened before, nothing else: no model, no text, no clock. So a
run can be replayed, resumed at any position after a crash, and walked over drafted tokens, with the same result.

A position's `lead` names the model whose row the token is drawn from. In every policy a model leads from the very
token at which the rule asks for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rl_onoff.philox import STREAM_POLICY, uniform

Lead = Literal["a", "b"]

#: What a policy may compare: measures of the two rows at a position (`rl_onoff.divergence`).
PolicyMeasure = Literal["js", "kl_ab", "kl_ba", "tv", "hellinger", "entropy_a", "entropy_b"]


class _Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def watched(self) -> PolicyMeasure:
        """The measure logged beside every token and switch."""
        return "js"


class _Budgeted(_Policy):
    max_b_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="B leads a token only while its share of all tokens so far, this one included, stays within.",
    )


class DivergencePolicy(_Budgeted):
    """A leads; when the measure exceeds `on` B leads, for `min_dwell` tokens at least; at or below `off` A is back."""

    kind: Literal["divergence"] = "divergence"
    measure: PolicyMeasure = "js"
    on: float = Field(default=0.1, ge=0, description="nats")
    off: float | None = Field(default=None, ge=0, description="nats; default: `on`")
    min_dwell: int = Field(default=1, ge=1, le=1_000_000)
    start: Lead = Field(default="a", description="who leads before the first token is judged")

    @model_validator(mode="after")
    def _ordered(self) -> DivergencePolicy:
        if self.off is not None and self.off > self.on:
            raise ValueError("off must not exceed on, or the lead would flip at every token between them")
        return self

    @property
    def watched(self) -> PolicyMeasure:
        return self.measure


class RandomPolicy(_Budgeted):
    """B leads each token with probability `rate`, independently: the rate-matched control of every other policy.

    The draws are a function of the request's seed and the position, independent of the tokens' noise.
    """

    kind: Literal["random"]
    rate: float = Field(ge=0, le=1)


class SchedulePolicy(_Budgeted):
    """B leads exactly the tokens at `positions` (0 is the first generated one): replays and counterfactuals."""

    kind: Literal["schedule"]
    positions: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(sorted)] = Field(max_length=1_000_000)


class AlwaysA(_Policy):
    """A alone, judged by B at every token."""

    kind: Literal["always_a"]


class AlwaysB(_Policy):
    """B alone, judged by A at every token."""

    kind: Literal["always_b"]


Policy = Annotated[DivergencePolicy | RandomPolicy | SchedulePolicy | AlwaysA | AlwaysB, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """Everything a policy remembers: a function of the tokens emitted so far."""

    lead: Lead = "a"
    run: int = 0  # tokens the present leader has led without a break
    emitted: int = 0
    by_b: int = 0


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known at one position before its token is chosen.

    `position` counts from the start of the sequence, prompt included; `values` holds at least `policy.watched`.
    """

    position: int
    seed: int
    values: Mapping[str, float]


def initial_state(policy: Policy) -> PolicyState:
    """Before the first token, which is judged like every other: a B that starts owes no dwell."""
    if isinstance(policy, DivergencePolicy) and policy.start == "b":
        return PolicyState(lead="b", run=policy.min_dwell)
    return PolicyState()


def step(policy: Policy, state: PolicyState, signals: Signals) -> tuple[PolicyState, Lead]:
    """Advance by one token: the state after it, and who leads it."""
    lead = _wanted(policy, state, signals)
    cap = policy.max_b_fraction if isinstance(policy, _Budgeted) else None
    if lead == "b" and cap is not None and state.by_b + 1 > cap * (state.emitted + 1):
        lead = "a"
    return (
        replace(
            state,
            lead=lead,
            run=state.run + 1 if lead == state.lead else 1,
            emitted=state.emitted + 1,
            by_b=state.by_b + (lead == "b"),
        ),
        lead,
    )


def _wanted(policy: Policy, state: PolicyState, signals: Signals) -> Lead:
    match policy:
        case DivergencePolicy():
            value = signals.values[policy.measure]
            if state.lead == "a":
                return "b" if value > policy.on else "a"
            if state.run < policy.min_dwell:
                return "b"
            return "a" if value <= (policy.on if policy.off is None else policy.off) else "b"
        case RandomPolicy():
            return "b" if uniform(signals.seed, signals.position, STREAM_POLICY) < policy.rate else "a"
        case SchedulePolicy():
            index = bisect_left(policy.positions, state.emitted)
            return "b" if policy.positions[index : index + 1] == [state.emitted] else "a"
        case AlwaysA():
            return "a"
        case AlwaysB():
            return "b"
