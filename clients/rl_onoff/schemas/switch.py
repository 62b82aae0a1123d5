"""/switch-generate: one text by two models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rl_onoff.kinds import AnyPolicy
from rl_onoff.policy import DivergencePolicy, Lead
from rl_onoff.schemas.common import (
    MAX_IDS,
    FinishReason,
    Ids,
    Messages,
    Request,
    Response,
    Sampling,
    SwitchMeasure,
    Text,
    Usage,
    exactly_one,
    fault,
)


class Given(Request):
    """Tokens that were written after the prompt already, and who led each.

    The run goes on after them: with the noise of their positions, the policy's state, stop strings and detokenisation
    as though it had written them. All of the answer, and `max_tokens`, is about the tokens that follow.
    """

    token_ids: Ids
    leads: Annotated[str, StringConstraints(pattern="^[ab]+$", max_length=MAX_IDS)]

    @model_validator(mode="after")
    def _consistent(self) -> Given:
        if len(self.leads) != len(self.token_ids):
            raise ValueError(f"{len(self.leads)} leads for {len(self.token_ids)} tokens")
        return self


class SwitchRequest(Request):
    a: str | None = Field(default=None, description="default: the model that leads the only pair served")
    b: str | None = None
    prompt: Text | None = None
    prompt_ids: Ids | None = None
    messages: Messages | None = None
    given: Given | None = Field(default=None, description="tokens already written: the run goes on after them")
    policy: AnyPolicy = DivergencePolicy()
    sampling: Sampling = Sampling()
    lookahead: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = Field(
        default="auto", description="drafted tokens per round; 0: token by token; the result is the same"
    )
    measures: Annotated[list[SwitchMeasure], Field(fail_fast=True, max_length=64)] = Field(
        default=[], description="recorded for every token beside the policy's own"
    )
    stream: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> SwitchRequest:
        exactly_one(self, "prompt", "prompt_ids", "messages")
        if self.sampling.n != 1:
            raise fault("sampling.n", "must be 1: send one request per sample")
        return self


class Switch(Response):
    """The lead changed: from `position` (0 is the first generated token) on, `to` leads."""

    position: int
    from_: Lead = Field(alias="from")
    to: Lead
    value: float | None = Field(description="the watched measure there; null: infinite")


class Receipt(Response):
    """All it takes to get the same tokens again from this pair: its models in the roles they had, and what they did.

    With the same `a` and `b`, `prompt_ids`, `given`, `policy` and `sampling` a request repeats the run; the
    fingerprints tell whether the models are still the same.
    """

    version: str
    a: str | None = Field(default=None, description="the name of the model that was A; null from an older service")
    b: str | None = None
    a_fingerprint: str
    b_fingerprint: str
    prompt_ids: list[int]
    given: Given | None = None
    policy: AnyPolicy
    sampling: Sampling


class SwitchResponse(Response):
    id: str
    a: str
    b: str
    text: str
    token_ids: list[int]
    tokens: list[str] = Field(default=[], description="the text of each; joined they are `text`")
    leads: str = Field(description="one letter per token", pattern="^[ab]*$")
    divergences: list[float | None] = Field(description="the watched measure at every token; null: infinite")
    measure: str
    signals: dict[str, list[float | None]] = {}
    switches: list[Switch]
    b_fraction: float
    finish_reason: FinishReason
    seed: int
    decisions_within_noise: int = Field(
        default=0, description="tokens or leads that rounding may turn: where lookahead and lock-step may differ"
    )
    usage: Usage
    receipt: Receipt


class SwitchToken(Response):
    """SSE `token` of /switch-generate. The texts of all tokens, joined, are the result's text."""

    index: int
    id: int
    text: str
    lead: Lead
    divergence: float | None
