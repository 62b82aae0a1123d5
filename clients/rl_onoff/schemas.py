"""Every request, response and stream event of the HTTP API.

The service validates with these models, the SDK builds and reads with them. Requests are strict: no unknown fields,
no numbers in strings, no NaN. A float that is infinite (a log-probability of zero, KL over disjoint supports) is `null`
in JSON: -inf for a log-probability, +inf for a divergence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from rl_onoff.divergence import FAMILIES, MEASURES
from rl_onoff.kinds import AnyPolicy
from rl_onoff.policy import TOKEN_SIGNALS, DivergencePolicy, Lead, OneOf

MAX_SEED = 2**63 - 1

MAX_INT = 2**31 - 1
#: The least temperature rows are scored at: less, and float32 logits overflow. To sample greedily it may be 0.
MIN_TEMPERATURE = 1e-4
#: Ids in one list; far more than any context.
MAX_IDS = 1 << 20
#: Prompts, items, messages or references in one request; what the service takes is less, and its limits say so.
MAX_ENTRIES = 1 << 16
#: The type of an error that names a `field` in its context: pydantic's own path ends where several fields meet.
FIELD_ERROR = "field_error"

TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# Long lists stop at the first wrong entry: a million errors would cost more than any answer.
Ids = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_IDS)]
Text = Annotated[str, StringConstraints(min_length=1)]

#: A measure of given tokens, such as js or renyi:0.5.
Measure = Annotated[str, OneOf((*MEASURES, *FAMILIES))]
#: While a text is written there is also the token each model would have emitted (`rl_onoff.policy`).
SwitchMeasure = Annotated[str, OneOf((*MEASURES, *FAMILIES, *TOKEN_SIGNALS))]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Response(BaseModel):
    """Unknown fields are kept, so that an older SDK shows what a newer service adds."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class Message(Request):
    role: Literal["system", "user", "assistant"]
    content: str


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)]


def _fault(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError(FIELD_ERROR, "{text}", {"field": field, "text": text})


def _exactly_one(model: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}" + (f", not {' and '.join(given)}" if given else ""))


class Sampling(Request):
    """How a token is drawn from a row: temperature, then top_k, top_p, min_p; `temperature: 0` takes the best token."""

    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    temperature: float = Field(default=1.0, ge=0, le=1e6)
    top_p: float = Field(default=1.0, gt=0, le=1, description="keeps the token that crosses it")
    top_k: int = Field(default=0, ge=0, le=MAX_INT, description="0: off")
    min_p: float = Field(default=0.0, ge=0, le=1, description="relative to the most likely token")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="default: drawn, and reported")
    stop: Annotated[list[Text], Field(fail_fast=True, max_length=256)] | Text | None = Field(
        default=None, description="generation ends before the first of these"
    )
    n: int = Field(default=1, ge=1, le=1024, description="samples per prompt")
    ignore_eos: bool = False


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
    metrics: Annotated[list[Literal["exact_match", "perplexity"]], Field(fail_fast=True, max_length=16)] = []
    references: Annotated[list[str], Field(fail_fast=True, max_length=MAX_ENTRIES)] | None = Field(
        default=None, description="one per prompt, for exact_match"
    )
    stream: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> GenerateRequest:
        _exactly_one(self, "prompt", "prompts", "prompt_ids", "messages")
        count = len(self.prompts) if self.prompts is not None else 1
        if "exact_match" in self.metrics and self.references is None:
            raise _fault("references", "exact_match needs references, one per prompt")
        if self.references is not None and len(self.references) != count:
            raise _fault("references", f"{len(self.references)} references for {count} prompt(s)")
        return self


class TopTokens(Response):
    """The most likely tokens of one row, best first; `values` as the request's `kind`, null for -inf."""

    ids: list[int]
    values: list[float | None]


class TokenLogprobs(Response):
    """Log-probabilities of generated tokens: raw, at temperature 1, before any filter."""

    token_logprobs: list[float | None]
    top: list[TopTokens]


FinishReason = Literal["stop", "length"]


class Generated(Response):
    prompt_index: int
    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    logprobs: TokenLogprobs | None = None
    metrics: dict[str, float | None] = {}


class Usage(Response):
    """Tokens in and out, and what they cost.

    Forward passes of each model; with lookahead the tokens drafted, those of them that were emitted, and the rounds (a
    draft and the pass that judges it) they took.
    """

    prompt_tokens: int
    completion_tokens: int
    a_forwards: int = 0
    b_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    mean_accepted: float | None = Field(default=None, description="per round; null without lookahead")


class GenerateResponse(Response):
    id: str
    model: str
    results: list[Generated]
    metrics: dict[str, float | None] = {}
    usage: Usage


class Item(Request):
    """A prompt and the solution to be scored after it. Text is tokenised separately; ids are taken as they are."""

    prompt: Text | None = None
    prompt_ids: Ids | None = None
    messages: Messages | None = None
    solution: Text | None = None
    solution_ids: Ids | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Item:
        _exactly_one(self, "prompt", "prompt_ids", "messages")
        _exactly_one(self, "solution", "solution_ids")
        return self


Items = Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)]
RowKind = Literal["logprobs", "probs", "logits"]
RowDtype = Literal["float32", "float16", "bfloat16"]


class DistributionsRequest(Request):
    model: str
    items: Items
    kind: RowKind = "logprobs"
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_INT, description="null: the full vocabulary (binary answers only)"
    )
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=1e6)
    dtype: RowDtype = Field(default="float32", description="of the values in a binary answer")


class ItemDistributions(Response):
    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top: list[TopTokens]
    entropy: list[float]


class CacheUse(Response):
    hit_rows: int
    computed_rows: int


class DistributionsResponse(Response):
    id: str
    model: str
    vocab_size: int
    kind: RowKind
    items: list[ItemDistributions]
    cache: CacheUse


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
            raise _fault("prompt_mode", "per_model needs messages in every item")
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


class SwitchRequest(Request):
    a: str | None = Field(default=None, description="default: the model that leads the only pair served")
    b: str | None = None
    prompt: Text | None = None
    prompt_ids: Ids | None = None
    messages: Messages | None = None
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
        _exactly_one(self, "prompt", "prompt_ids", "messages")
        if self.sampling.n != 1:
            raise _fault("sampling.n", "must be 1: send one request per sample")
        return self


class Switch(Response):
    """The lead changed: from `position` (0 is the first generated token) on, `to` leads."""

    position: int
    from_: Lead = Field(alias="from")
    to: Lead
    value: float | None = Field(description="the watched measure there; null: infinite")


class Receipt(Response):
    """All it takes to get the same tokens again from this pair: its models in the roles they had, and what they did.

    With the same `a` and `b`, `prompt_ids`, `policy` and `sampling` a request repeats the run; the fingerprints tell
    whether the models are still the same.
    """

    version: str
    a: str | None = Field(default=None, description="the name of the model that was A; null from an older service")
    b: str | None = None
    a_fingerprint: str
    b_fingerprint: str
    prompt_ids: list[int]
    policy: AnyPolicy
    sampling: Sampling


class SwitchResponse(Response):
    id: str
    a: str
    b: str
    text: str
    token_ids: list[int]
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


class GenerateToken(Response):
    """SSE `token` of /generate."""

    prompt_index: int
    sample: int
    index: int
    id: int
    text: str
    logprob: float | None = None


class Problem(Response):
    """RFC 9457 problem details; also the SSE `error` event."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None
    retryable: bool = False


class ModelCard(Response):
    name: str
    pair: str
    side: Lead
    backend: str
    dtype: str | None = None
    vocab_size: int | None = None
    max_len: int | None = None
    fingerprint: str | None = None
    state: Literal["starting", "ready", "lost", "failed"]


class PairCard(Response):
    name: str
    a: str
    b: str


class ModelsResponse(Response):
    models: list[ModelCard]
    pairs: list[PairCard]


class HealthResponse(Response):
    status: Literal["ok"] = "ok"


class ReadyResponse(Response):
    ready: bool
    pairs: dict[str, str]


class VersionResponse(Response):
    version: str
    python: str
    extra: dict[str, Any] = {}
