"""/divergence: two models compared at every token of given solutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl_onoff.schemas.common import (
    MIN_TEMPERATURE,
    CacheUse,
    Items,
    Measure,
    PromptMode,
    Request,
    Response,
    check_prompt_mode,
)


class DivergenceRequest(Request):
    a: str | None = Field(default=None, description="default: the model that leads the only pair served")
    b: str | None = None
    items: Items
    measures: Annotated[list[Measure], Field(fail_fast=True, min_length=1, max_length=64)] = ["js", "kl_ab", "kl_ba"]
    units: Literal["nats", "bits"] = "nats"
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=1e6)
    summary: bool = True
    columns: bool = Field(
        default=False, description="also give what a summary needs beside the measures, so that one can be made of many"
    )
    noise_floor: bool = Field(
        default=False,
        description="also measure how far A is from itself: in forward passes of another shape, and with its logits "
        "rounded to bfloat16",
    )
    merge_eos: bool = Field(
        default=False, description="count all end-of-sequence tokens of either model as one token before comparing"
    )
    prompt_mode: PromptMode = Field(
        default="shared", description="per_model: each model's own chat template renders `messages`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DivergenceRequest:
        check_prompt_mode(self.prompt_mode, self.items)
        return self


class StatisticsOut(Response):
    """Moments over the finite values, order statistics over all; null where infinite.

    `stderr` and `std` are null where fewer than two values are finite. An order statistic that is null is -inf if its
    share of the values does not exceed that of `negative_infinite`.
    """

    count: int
    infinite: int
    negative_infinite: int = Field(default=0, description="how many of the infinite ones are -inf")
    mean: float | None
    stderr: float | None
    std: float | None
    min: float | None
    max: float | None
    percentiles: dict[str, float | None]
    clustered_stderr: float | None = Field(
        default=None, description="of the mean, items being independent rather than tokens; null for one item"
    )
    max_at: TokenPlace | None = Field(default=None, description="where the largest value is")


class TokenPlace(Response):
    """A token of the request's items: `position` counts within the solution."""

    item: int | str = Field(description="its place in the request; in a run the row's id")
    position: int
    token_id: int
    token: str


class EstimateOut(Response):
    """A mean over tokens, with its standard error over tokens and over items, each null of fewer than two."""

    value: float
    stderr: float | None
    clustered_stderr: float | None


class Perplexities(Response):
    """Of A and B on the same tokens, null where infinite; errors null where there is no estimate, or of one token.

    Errors by the delta method, those of `ratio` and `difference` with the models' covariance; the clustered ones take
    items as independent rather than tokens, and are null for one item.
    """

    a: float | None
    b: float | None
    ratio: float | None = Field(description="b over a; null too where each excludes a token the other allows")
    difference: float | None = Field(default=None, description="b minus a")
    a_stderr: float | None = None
    b_stderr: float | None = None
    ratio_stderr: float | None = Field(description="from the differences at each token, so correlation is allowed for")
    difference_stderr: float | None = None
    a_clustered_stderr: float | None = None
    b_clustered_stderr: float | None = None
    ratio_clustered_stderr: float | None = None
    difference_clustered_stderr: float | None = None
    correlation: float | None = Field(
        default=None, description="Pearson's, of the two models' log-probabilities of the scored tokens"
    )


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
    delta_p: StatisticsOut | None = Field(default=None, description="of p_B - p_A of the scored token")
    rms_delta_p: EstimateOut | None = Field(
        default=None, description="root mean square of p_B - p_A of the scored token"
    )
    mean_delta_p: EstimateOut | None = None
    shifts: dict[str, EstimateOut] = {}
    by_confidence: list[BucketOut] = Field(default=[], description="by the probability of A's most likely token")
    by_position: list[BucketOut] = Field(default=[], description="by place in the solution, from 0 to 1")


class NoiseFloor(Response):
    """The request's measures between A and A itself, over its items, at its temperature and in its units.

    `pass_shape`: in B's place is A computed in forward passes of 1, 8 and 32 tokens by turns, where else it is as many
    at once as the worker scores. `bfloat16_logits`: A with its logits rounded to bfloat16. Of `delta_logp`,
    whose sign means nothing here, and of `entropy_a` and `top_prob_a`, which are of one row, it is how far they move.
    `absent`: measures without a floor, and why.
    """

    pass_shape: dict[str, StatisticsOut]
    bfloat16_logits: dict[str, StatisticsOut]
    absent: dict[str, str] = {}


class ItemDivergence(Response):
    """Of T tokens. JSON has no infinity: null stands for it, with its sign in `infinite` and `negative_infinite`."""

    token_ids: list[int]
    tokens: list[str]
    values: dict[str, list[float | None]] = Field(description="null: infinite, see `infinite`")
    infinite: dict[str, list[int]] = Field(default={}, description="positions whose value is infinite, either way")
    negative_infinite: dict[str, list[int]] = Field(default={}, description="those of `infinite` whose value is -inf")
    logprobs_a: list[float | None] = Field(
        default=[], description="of the solution's tokens under A, at the temperature, in nats; null: -inf"
    )
    logprobs_b: list[float | None] = []
    columns: dict[str, list[float]] | None = Field(
        default=None, description="top1_agree, top_prob_a and rank_of_b_in_a, where the request said `columns`"
    )
    summary: DivergenceSummary | None = None

    def column(self, measure: str) -> list[float]:
        """The values of a measure, `[T]`, infinite ones as such. Raises KeyError for one that was not asked for."""
        return with_infinities(self.values[measure], self.negative_infinite.get(measure, ()))


def with_infinities(values: Sequence[float | None], negative: Iterable[int] = ()) -> list[float]:
    """Values of an answer or a record, null replaced by the infinity it stands for; `negative`: places of -inf."""
    below = frozenset(negative)
    return [
        (-math.inf if index in below else math.inf) if value is None else value for index, value in enumerate(values)
    ]


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
    prompt_mode: PromptMode


class DivergenceResponse(Response):
    id: str
    a: str
    b: str
    items: list[ItemDivergence]
    summary: DivergenceSummary | None = None
    noise_floor: NoiseFloor | None = None
    provenance: Provenance
    cache: CacheUse | None = None
