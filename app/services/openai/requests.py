"""What OpenAI's clients send. Every field is honoured, or refused by name: none is ignored.

`null` means absent, as it does to OpenAI. Fields whose every other value would change the answer in a way this service
has no means for are taken with the value that changes nothing, and refused with any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, model_validator

from rl_onoff.kinds import AnyPolicy
from rl_onoff.schemas import Message
from rl_onoff.schemas.common import MAX_ENTRIES, MAX_IDS, MAX_INT, MAX_SEED, Request, Stop, fault

#: What has no effect on an answer: names for OpenAI's own books.
_IDLE: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store"})
#: The values that change nothing, of fields that cannot be honoured.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "prediction": (),
    "audio": (),
    "verbosity": (),
    "web_search_options": (),
}
#: Prompts in one request as OpenAI knows them: texts, or lists of ids.
Prompts = list[str] | list[list[int]]


def _prompts(value: Any) -> Prompts:
    """One text, one list of ids, or a list of either, as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and 0 < len(value) <= MAX_IDS:
        if all(isinstance(entry, str) for entry in value):
            if len(value) <= MAX_ENTRIES:
                return value
        elif _are_ids(value):
            return [value]
        elif len(value) <= MAX_ENTRIES and all(_are_ids(entry) for entry in value):
            return value
    raise ValueError("must be a text, a list of token ids, or a list of texts or of lists of token ids, none empty")


def _are_ids(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_IDS:
        return False
    return all(type(entry) is int for entry in value) and min(value) >= 0 and max(value) <= MAX_INT


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class OpenAIRequest(Request):
    """What completions and chats share, and this service's own fields (`extra_body` of openai-python)."""

    model: str
    n: int = Field(default=1, ge=1, le=1024)
    temperature: float = Field(default=1.0, ge=0, le=1e6)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: int = Field(default=0, ge=0, le=MAX_INT, description="not OpenAI's; 0: off")
    min_p: float = Field(default=0.0, ge=0, le=1, description="not OpenAI's")
    ignore_eos: bool = Field(default=False, description="not OpenAI's")
    policy: AnyPolicy | None = Field(default=None, description="not OpenAI's: how the pair named by `model` switches")
    lookahead: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = Field(
        default="auto", description="not OpenAI's: as in /switch-generate"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_idle_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if value is None or name in _IDLE:
                continue
            if name in _NEUTRAL and name not in cls.model_fields:
                if not any(type(value) in (type(neutral), float) and value == neutral for neutral in _NEUTRAL[name]):
                    raise fault(name, _refusal(name))
                continue
            kept[name] = value
        return kept

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> OpenAIRequest:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "is for streams: set stream to true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def _refusal(name: str) -> str:
    values = " or ".join(repr(value) for value in _NEUTRAL[name])
    return "is not supported" + (f"; leave it out, or send {values}" if values else "; leave it out")


class CompletionRequest(OpenAIRequest):
    prompt: Annotated[
        Any, PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ]
    max_tokens: int = Field(default=16, ge=0, le=1_000_000, description="0 only with echo")
    echo: bool = False
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_INT,
        description="the k most likely tokens beside each token's own; echo: the prompt's too",
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise fault("max_tokens", "must be 1 at least, unless echo returns the prompt")
        return self


class TextPart(Request):
    type: Literal["text"]
    text: str


class ChatMessage(Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1024)]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        """An answer sent back whole has members for what it does not hold."""
        if not isinstance(message, dict):
            return message
        empty = ("refusal", "annotations", "audio", "function_call", "tool_calls", "name")
        return {name: value for name, value in message.items() if name not in empty or value not in (None, [])}

    def plain(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatRequest(OpenAIRequest):
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)]
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="default: what fits the context")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="the same")
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_INT)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("top_logprobs", "needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise fault("max_tokens", "give max_tokens or max_completion_tokens, not both")
        return self
