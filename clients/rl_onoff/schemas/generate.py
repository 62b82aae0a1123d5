"""/generate: samples from one model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from rl_onoff.schemas.common import (
    MAX_ENTRIES,
    MAX_INT,
    FinishReason,
    Ids,
    Messages,
    Request,
    Response,
    Sampling,
    Text,
    TopTokens,
    Usage,
    exactly_one,
    fault,
)

#: Which there are is the service's to say: it may have more than this installation (`rl_onoff.metrics`).
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class GenerateRequest(Request):
    model: str
    prompt: Text | None = None
    prompts: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)] | None = None
    prompt_ids: Ids | None = None
    messages: Messages | None = None
    sampling: Sampling = Sampling()
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_INT, description="also the k most likely tokens at every position"
    )
    metrics: Annotated[list[MetricName], Field(fail_fast=True, max_length=16)] = Field(
        default=[],
        description="perplexity (the model's own), or a metric of texts: exact_match, exact_match:number, bleu, "
        "rougeL, math, length, ..., or one the service has registered",
    )
    references: Annotated[list[str], Field(fail_fast=True, max_length=MAX_ENTRIES)] | None = Field(
        default=None, description="one per prompt, for the metrics that compare with one"
    )
    stream: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> GenerateRequest:
        exactly_one(self, "prompt", "prompts", "prompt_ids", "messages")
        count = len(self.prompts) if self.prompts is not None else 1
        if "exact_match" in self.metrics and self.references is None:
            raise fault("references", "exact_match needs references, one per prompt")
        if self.references is not None and len(self.references) != count:
            raise fault("references", f"{len(self.references)} references for {count} prompt(s)")
        return self


class TokenLogprobs(Response):
    """Log-probabilities of generated tokens: raw, at temperature 1, before any filter."""

    token_logprobs: list[float | None]
    top: list[TopTokens]


class Generated(Response):
    prompt_index: int
    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    logprobs: TokenLogprobs | None = None
    metrics: dict[str, float | None] = {}


class GenerateResponse(Response):
    id: str
    model: str
    results: list[Generated]
    metrics: dict[str, float | None] = {}
    usage: Usage


class GenerateToken(Response):
    """SSE `token` of /generate."""

    prompt_index: int
    sample: int
    index: int
    id: int
    text: str
    logprob: float | None = None
