"""What several requests and answers share: the strict base classes, ids and texts, sampling, items, usage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from rl_onoff.divergence import FAMILIES, MEASURES
from rl_onoff.policy import TOKEN_SIGNALS, OneOf

MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
#: The least temperature rows are scored at: less, and float32 logits overflow. To sample greedily it may be 0.
MIN_TEMPERATURE = 1e-4
#: Ids in one list; far more than any context.
MAX_IDS = 1 << 20
#: Prompts, items, messages or references in one request; what the service takes is less, and its limits say so.
MAX_ENTRIES = 1 << 16
#: Stop strings in one request, and characters of each: as much text as they are long is held back and searched.
MAX_STOPS = 256
MAX_STOP_CHARS = 4096
#: The type of an error that names a `field` in its context: pydantic's own path ends where several fields meet.
FIELD_ERROR = "field_error"

TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# Long lists stop at the first wrong entry: a million errors would cost more than any answer.
Ids = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_IDS)]
Text = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[list[StopText], Field(fail_fast=True, max_length=MAX_STOPS)] | StopText | None

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


def fault(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError(FIELD_ERROR, "{text}", {"field": field, "text": text})


def exactly_one(model: BaseModel, *names: str) -> None:
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
    stop: Stop = Field(default=None, description="generation ends before the first of these")
    n: int = Field(default=1, ge=1, le=1024, description="samples per prompt")
    ignore_eos: bool = False


class Item(Request):
    """A prompt and the solution to be scored after it. Text is tokenised separately; ids are taken as they are."""

    prompt: Text | None = None
    prompt_ids: Ids | None = None
    messages: Messages | None = None
    solution: Text | None = None
    solution_ids: Ids | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Item:
        exactly_one(self, "prompt", "prompt_ids", "messages")
        exactly_one(self, "solution", "solution_ids")
        return self


Items = Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)]

#: Whose chat template renders `messages`: one for both models of a pair, or each model's own.
PromptMode = Literal["shared", "per_model"]


def check_prompt_mode(mode: PromptMode, items: list[Item]) -> None:
    """Raises the error of a request whose `prompt_mode` has nothing to render."""
    if mode == "per_model" and any(item.messages is None for item in items):
        raise fault("prompt_mode", "per_model needs messages in every item")


class TopTokens(Response):
    """The most likely tokens of one row, best first; `values` as the request's `kind`, null for -inf."""

    ids: list[int]
    values: list[float | None]


FinishReason = Literal["stop", "length"]


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


class CacheUse(Response):
    """Positions answered from the cache, and by the models."""

    hit_rows: int
    computed_rows: int
