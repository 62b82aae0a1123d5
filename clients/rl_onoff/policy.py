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

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

from rl_onoff.divergence import FAMILIES, parse, pattern, spellings
from rl_onoff.divergence import MEASURES as ROW_MEASURES
from rl_onoff.philox import STREAM_POLICY, uniform

Lead = Literal["a", "b"]

#: Signals of the tokens the two models would emit, beside the measures of their rows.
TOKEN_SIGNALS: Final = ("delta_logp_a", "delta_logp_b", "prob_of_a_in_b")


@dataclass(frozen=True)
class OneOf:
    """Annotates a string field: one of these measures; a family's name stands for its measures."""

    names: tuple[str, ...]

    def __call__(self, name: str) -> str:
        """The name, if it is allowed; the message of the ValueError holds what is, but no input."""
        if self.allows(name):
            return name
        raise ValueError(f"should be one of {spellings(self.names)}")

    def allows(self, name: str) -> bool:
        if name in self.names:
            return name not in FAMILIES
        try:
            return parse(name)[0] in self.names
        except ValueError:
            return False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        plain = [name for name in self.names if name not in FAMILIES]
        families = [{"type": "string", "pattern": f"^{pattern(name)}$"} for name in self.names if name in FAMILIES]
        return {"anyOf": [{"type": "string", "enum": plain}, *families]}


#: What the divergence policy may compare: measures that grow as the rows part.
PolicyMeasure = Annotated[
    str, OneOf(("js", "kl_ab", "kl_ba", "tv", "hellinger", "entropy_a", "entropy_b", "renyi", "renyi_ba"))
]
_SIGNALS: Final = OneOf(
    (*(name for name in ROW_MEASURES if name != "delta_logp"), *FAMILIES, *TOKEN_SIGNALS),
)

Nats = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


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
        unknown = sorted(name for name in self.signals | {self.watched} if not _SIGNALS.allows(name))
        if unknown:
            raise ValueError(f"this policy reads signals that do not exist: {', '.join(unknown)}")
        return self


class BudgetedPolicy(Policy):
    """A policy whose use of B can be capped: A leads where the cap forbids B."""

    max_b_fraction: Probability | None = Field(
        default=None,
        description="B leads a token only while its share of all tokens so far, this one included, stays within.",
    )


class ThresholdPolicy(BudgetedPolicy):
    """A leads; beyond `on` B leads, for `min_dwell` tokens at least; once no longer beyond `off`, A is back.

    Between the two the leader stays. What "beyond" means is the subclass's; with `b_below` it is under the threshold
    instead of over it, and `off` is the higher of the two.
    """

    b_below: ClassVar[bool] = False

    on: float
    off: float | None = Field(default=None, description="default: `on`")
    min_dwell: int = Field(default=1, ge=1, le=1_000_000)
    start: Lead = Field(default="a", description="who leads before the first token is judged")

    @abstractmethod
    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        """Whether the signals ask for B at this threshold."""

    def initial_state(self) -> PolicyState:
        """A B that starts owes no dwell."""
        return PolicyState(lead="b", run=self.min_dwell) if self.start == "b" else PolicyState()

    def wants(self, state: PolicyState, signals: Signals) -> Lead:
        if state.lead == "b" and state.run < self.min_dwell:
            return "b"
        threshold = self.on if state.lead == "a" or self.off is None else self.off
        return "b" if self.beyond(threshold, signals.values) else "a"

    @model_validator(mode="after")
    def _ordered(self) -> ThresholdPolicy:
        if self.off is not None and (self.off < self.on if self.b_below else self.off > self.on):
            wrong = "be below" if self.b_below else "exceed"
            raise ValueError(f"off must not {wrong} on, or the lead would flip at every token between them")
        return self


class DivergencePolicy(ThresholdPolicy):
    """B leads while the measure exceeds the threshold."""

    kind: Literal["divergence"] = "divergence"
    measure: PolicyMeasure = "js"
    on: Nats = Field(default=0.1, description="in the measure's unit: nats, but for tv and hellinger")
    off: Nats | None = Field(default=None, description="default: `on`")

    @property
    def watched(self) -> str:
        return self.measure

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values[self.measure] > threshold


class DeltaLogpPolicy(ThresholdPolicy):
    """B leads while the models disagree on one token by more than the threshold, in nats and with its sign.

    `of` "b": log q - log p of the token B would emit, which B prefers. `of` "a": log p - log q of the token A would
    emit, which B would avoid (recorded as `delta_logp_a`, whose sign is the other way round). The default of 1 nat, a
    token e times as likely, is ours. Signal: arXiv 2603.22117, log p_RL - log p_base.
    """

    kind: Literal["delta_logp"] = "delta_logp"
    of: Lead = "b"
    on: float = Field(default=1.0, description="nats; may be negative")
    off: float | None = Field(default=None, description="nats; default: `on`")

    @property
    def watched(self) -> str:
        return f"delta_logp_{self.of}"

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        value = values[self.watched]
        return (value if self.of == "b" else -value) > threshold


class EntropyPolicy(ThresholdPolicy):
    """B leads while A's entropy exceeds the threshold.

    Default: R2R's 0.45 nats (NeurIPS 2025), whose rule has >= where every threshold here is exceeded with >.
    """

    kind: Literal["entropy"] = "entropy"
    on: Nats = Field(default=0.45, description="nats")
    off: Nats | None = Field(default=None, description="nats; default: `on`")

    @property
    def watched(self) -> str:
        return "entropy_a"

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values["entropy_a"] > threshold


class TopProbPolicy(ThresholdPolicy):
    """Nudging: B leads while A's top-1 probability is below the threshold.

    Fei et al., "Nudging: inference-time alignment of LLMs via guided decoding", ACL 2025; 0.4 is the paper's gamma.
    """

    b_below = True

    kind: Literal["top_prob"] = "top_prob"
    on: Probability = 0.4
    off: Probability | None = Field(default=None, description="at least `on`, which is the default")

    @property
    def watched(self) -> str:
        return "top_prob_a"

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values["top_prob_a"] < threshold


class RankPolicy(ThresholdPolicy):
    """B leads while its most likely token ranks lower than `on` under A; 1 is A's best, of equals the lower id.

    Default: 3, above which URIAL (ICLR 2024) calls a token shifted; 1 also takes its marginal ones.
    """

    kind: Literal["rank"] = "rank"
    on: float = Field(default=3, ge=1)
    off: float | None = Field(default=None, ge=1, description="default: `on`")

    @property
    def watched(self) -> str:
        return "rank_of_b_in_a"

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values["rank_of_b_in_a"] > threshold


class TargetFloorPolicy(ThresholdPolicy):
    """A's token is kept while B gives it the threshold's probability at least, or thinks no token likelier.

    Default: 0.01, as in speculative thinking (the rule of the smaller model's tokens that the larger one accepts).
    """

    b_below = True

    kind: Literal["target_floor"] = "target_floor"
    on: Probability = 0.01
    off: Probability | None = Field(default=None, description="at least `on`, which is the default")

    @property
    def watched(self) -> str:
        return "prob_of_a_in_b"

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"prob_of_a_in_b", "top_prob_b"})

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values["prob_of_a_in_b"] < min(threshold, values["top_prob_b"])


class TypicalPolicy(ThresholdPolicy):
    """A's token is kept while B's probability of it exceeds min(on, delta e^-H) with H the entropy of B in nats.

    Medusa's typical acceptance (Cai et al., ICML 2024, section 2.3.1) with the defaults of its code: epsilon 0.09, here
    `on`, and delta its root. B's own best token is always kept, for its probability is at least e^-H.
    """

    b_below = True

    kind: Literal["typical"] = "typical"
    on: Probability = Field(default=0.09, description="epsilon")
    off: Probability | None = Field(default=None, description="at least `on`, which is the default")
    delta: float = Field(default=0.3, gt=0, lt=1)

    @property
    def watched(self) -> str:
        return "prob_of_a_in_b"

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"prob_of_a_in_b", "entropy_b"})

    def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
        return values["prob_of_a_in_b"] <= min(threshold, self.delta * math.exp(-values["entropy_b"]))


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


def initial_state(policy: Policy) -> PolicyState:
    """Before the first token."""
    return policy.initial_state()


def first_lead(policy: Policy) -> Lead:
    """Who leads before the first token: a first token by the other is a switch at position 0."""
    return "b" if isinstance(policy, AlwaysB) else initial_state(policy).lead


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
