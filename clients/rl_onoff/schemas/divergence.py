"""/divergence: two models compared at every token of given solutions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl_onoff.schemas.common import MIN_TEMPERATURE, Items, Measure, Request, Response, fault


class DivergenceRequest(Request):
    a: str | None = Field(default=None, description="default: the model that leads the only pair served")
    b: str | None = None
    items: Items
    measures: Annotated[list[Measure], Field(fail_fast=True, min_length=1, max_length=64)] = ["js", "kl_ab", "kl_ba"]
    units: Literal["nats", "bits"] = "nats"
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=1e6)
    summary: bool = True
    prompt_mode: Literal["shared", "per_model"] = Field(
        default="shared", description="per_model: each model's own chat template renders `messages`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DivergenceRequest:
        if self.prompt_mode == "per_model" and any(item.messages is None for item in self.items):
            raise fault("prompt_mode", "per_model needs messages in every item")
        return self


class StatisticsOut(Response):
    """Moments over the finite values, order statistics over all; null where infinite."""

    count: int
    infinite: int
    mean: float | None
    stderr: float
    std: float
    min: float | None
    max: float | None
    percentiles: dict[str, float | None]


class Perplexities(Response):
    a: float | None
    b: float | None
    ratio: float | None = Field(description="b over a")
    ratio_stderr: float | None


class DivergenceSummary(Response):
    positions: int
    measures: dict[str, StatisticsOut]
    top1_agreement: float
    perplexity: Perplexities


class ItemDivergence(Response):
    token_ids: list[int]
    tokens: list[str]
    values: dict[str, list[float | None]] = Field(description="null: infinite, see `infinite`")
    infinite: dict[str, list[int]] = Field(default={}, description="positions whose value is infinite")
    summary: DivergenceSummary | None = None


class Provenance(Response):
    """What the numbers were computed from."""

    version: str
    backend: str
    a_fingerprint: str
    b_fingerprint: str
    vocab_size: int
    dtypes: list[str]
    units: Literal["nats", "bits"]
    temperature: float
    prompt_mode: Literal["shared", "per_model"]


class DivergenceResponse(Response):
    id: str
    a: str
    b: str
    items: list[ItemDivergence]
    summary: DivergenceSummary | None = None
    provenance: Provenance
