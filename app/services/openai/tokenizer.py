"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the pair's tokenizer for clients that have none (vLLM's routes)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.services.openai.names import Switched, resolve
from app.services.openai.requests import ChatMessage
from app.services.openai.running import pair_of
from app.services.registry import Registry
from app.services.text import Codec
from rl_onoff.errors import InvalidField
from rl_onoff.schemas import Response
from rl_onoff.schemas.common import MAX_ENTRIES, MAX_IDS, Request, TokenId, exactly_one
from workers.wire import Side


class TokenizeRequest(Request):
    """One text, or a conversation as the chat template renders it."""

    model: str | None = Field(default=None, description="default: the only pair served")
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRIES)] | None = None
    add_special_tokens: bool = Field(default=True, description="of a prompt: those the tokenizer puts around a text")
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _conversation_as_prompt(cls, body: Any) -> Any:
        """lm-evaluation-harness sends the messages of `--apply_chat_template` so."""
        match body:
            case {"prompt": [{}, *_] as messages, **others} if "messages" not in others:
                return {**others, "messages": messages}
        return body

    @model_validator(mode="after")
    def _consistent(self) -> TokenizeRequest:
        exactly_one(self, "prompt", "messages")
        return self


class TokenizeResponse(Response):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Request):
    model: str | None = Field(default=None, description="default: the only pair served")
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]


class DetokenizeResponse(Response):
    prompt: str


async def tokenize(request: TokenizeRequest, registry: Registry, wait_seconds: float) -> TokenizeResponse:
    codec, side = await _codec(request.model, registry, wait_seconds)
    if request.messages is not None:
        ids = await codec.chat([message.plain() for message in request.messages], side, "messages")
    else:
        ids = await codec.encode(request.prompt or "", "prompt", special=request.add_special_tokens)
    return TokenizeResponse(
        count=len(ids),
        max_model_len=codec.max_len,
        tokens=ids,
        token_strs=codec.pieces(ids) if request.return_token_strs else None,
    )


async def detokenize(request: DetokenizeRequest, registry: Registry, wait_seconds: float) -> DetokenizeResponse:
    codec, _ = await _codec(request.model, registry, wait_seconds)
    return DetokenizeResponse(prompt=codec.decode(codec.ids(request.tokens, "tokens")) if request.tokens else "")


async def tokenizer_info(model: str | None, registry: Registry, wait_seconds: float) -> dict[str, Any]:
    """As a `tokenizer_config.json`: special tokens by their names, the chat template, the longest input."""
    codec, side = await _codec(model, registry, wait_seconds)
    absent = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **absent,
        **codec.special_tokens,
        "chat_template": codec.template(side),
        "model_max_length": codec.max_len,
    }


async def _codec(model: str | None, registry: Registry, wait_seconds: float) -> tuple[Codec, Side]:
    """The tokenizer, and whose chat template applies."""
    if model is None:
        if len(registry.pair_names) > 1:
            raise InvalidField(f"name one: several pairs are served ({', '.join(registry.pair_names)})", field="model")
        model = "switch"
    target = await resolve(model, None, registry, wait_seconds)
    codec = pair_of(target).codec
    return codec, codec.template_side(target.served.side_a) if isinstance(target, Switched) else target.side
