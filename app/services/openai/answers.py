"""What OpenAI's clients read, and this service's own members beside it. Members that were not set are not sent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rl_onoff.policy import Lead
from rl_onoff.schemas import FinishReason, Response, Switch


class Usage(Response):
    """`a_forwards` and the like: what the tokens cost, as on the native routes."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    a_forwards: int = 0
    b_forwards: int = 0
    drafted: int = 0
    accepted: int = 0


class SwitchSummary(Response):
    """How a pair wrote one choice. Positions count from the first generated token."""

    policy: dict[str, Any]
    measure: str = Field(description="the signal `divergence` and `divergences` hold")
    b_tokens: int
    b_fraction: float
    switches: list[Switch]
    decisions_within_noise: int


class WalkSummary(Response):
    """The policy's walk over an echoed prompt: every position but the first, which nothing predicts."""

    positions: int
    b_positions: int
    leads: str = Field(description="one letter per position, from the second token of the prompt on")
    divergences: list[float | None]


class _Told(Response):
    """Of a pair's choice, or of one of its tokens. `null` is infinite."""

    token_ids: list[int] | None = None
    seed: int | None = None
    leads: str | None = None
    divergences: list[float | None] | None = None
    lead: Lead | None = None
    divergence: float | None = None
    switch: SwitchSummary | None = None


class CompletionLogprobs(Response):
    """Raw log-probabilities, in nats, at temperature 1 and before any filter; -9999 stands for minus infinity."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Told):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    prompt_switch: WalkSummary | None = None


class Completion(Response):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(Response):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    content: list[TokenLogprob]
    refusal: None


class ChatAnswer(Response):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatDelta(Response):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(_Told):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatChunkChoice(_Told):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletion(Response):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Response):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelEntry(Response):
    """A name for `model`: one model (`side`), or a pair under a policy."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rl-onoff"


class ModelList(Response):
    object: Literal["list"] = "list"
    data: list[ModelEntry]
