"""/divergence: two models compared at every token of given solutions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl_onoff.schemas.common import MIN_TEMPERATURE, CacheUse, Items, Measure, Request, Response, fault


class DivergenceRequest(Request):
    a: str | None = Field(default=None, description="default: the model that leads the only pair served")
    b: str | None = None
    items: Items
    measures: Annotated[list[Measure], Field(fail_fast=True, min_length=1, max_length=64)] = ["js", "kl_ab", "kl_ba"]
    units: Literal["nats", "bits"] = "nats"
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=1e6)
    summary: bool = True
    noise_floor: bool = Field(
        default=False, description="also measure how far A is from itself with its logits rounded to bfloat16"
    )
    merge_eos: bool = Field(
        default=False, description="count all end-of-sequence tokens of either model as one token before comparing"
    )
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
    clustered_stderr: float | None = Field(
        default=None, description="of the mean, items being independent rather than tokens; null for one item"
    )
    max_at: TokenPlace | None = Field(default=None, description="where the largest value is")


class TokenPlace(Response):
    """A token of the request's items: `position` counts within the solution."""

    item: int
    position: int
    token_id: int
    token: str


class EstimateOut(Response):
    """A mean over tokens, with its standard error over tokens, and over items where there are two at least."""

    value: float
    stderr: float
    clustered_stderr: float | None


class Perplexities(Response):
    a: float | None
    b: float | None
    ratio: float | None = Field(description="b over a; null too where each excludes a token the other allows")
    ratio_stderr: float | None = Field(description="from the differences at each token, so correlation is allowed for")
    ratio_clustered_stderr: float | None = None


class BucketOut(Response):
    """Tokens with low <= x < high (the last: <= high) and the mean of each measure over them, null where none."""

    low: float
    high: float
    count: int
    means: dict[str, float | None]


class DivergenceSummary(Response):
    """Over all tokens.

    `shifts`: shares of tokens at which B's most likely token is A's first (unshifted), its second or third (marginal),
    or further down (shifted).
    """

    positions: int
    items: int = 1
    measures: dict[str, StatisticsOut]
    top1_agreement: float
    top1: EstimateOut | None = None
    perplexity: Perplexities
    rms_delta_p: EstimateOut | None = Field(
        default=None, description="root mean square of p_B - p_A of the scored token"
    )
    mean_delta_p: EstimateOut | None = None
    shifts: dict[str, EstimateOut] = {}
    by_confidence: list[BucketOut] = Field(default=[], description="by the probability of A's most likely token")
    by_position: list[BucketOut] = Field(default=[], description="by place in the solution, from 0 to 1")


class NoiseFloor(Response):
    """How far the measures are from their ideal for reasons of arithmetic alone, in the request's units.

    `pass_shape`: the largest change seen when the worker computed a text of its own in forward passes of other shapes.
    `bfloat16_logits`: mean and largest value between A and A with its logits rounded to bfloat16, over the items.
    """

    pass_shape: dict[str, float]
    bfloat16_logits: dict[str, StatisticsOut]


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
    vocab_size: int = Field(description="ids compared, from 0 on")
    logit_columns: list[int] = Field(default=[], description="the models' own widths; columns beyond are cut")
    dtypes: list[str]
    devices: list[str] = []
    kernel: str = Field(default="", description="what computed the measures")
    merge_eos: bool = False
    merged_ids: list[int] = Field(default=[], description="ids counted as one token")
    units: Literal["nats", "bits"]
    temperature: float
    prompt_mode: Literal["shared", "per_model"]


class DivergenceResponse(Response):
    id: str
    a: str
    b: str
    items: list[ItemDivergence]
    summary: DivergenceSummary | None = None
    noise_floor: NoiseFloor | None = None
    provenance: Provenance
    cache: CacheUse | None = None
