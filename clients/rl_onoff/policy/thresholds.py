"""Policies that hand over when a signal passes a threshold."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rl_onoff.policy.machine import BudgetedPolicy, Lead, PolicyState, Signals
from rl_onoff.policy.signals import Nats, PolicyMeasure, Probability


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
