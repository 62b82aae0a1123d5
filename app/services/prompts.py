"""What a request gives to be continued or scored, as token ids within the context."""

from __future__ import annotations

from typing import Protocol

from app.config import Limits
from app.services.text import Codec
from rl_onoff.errors import LimitExceeded
from rl_onoff.schemas import Item, Message, Sampling
from workers.wire import Side


class Prompted(Protocol):
    """A request that gives exactly one of these."""

    prompt: str | None
    prompt_ids: list[int] | None
    messages: list[Message] | None


async def prompt_ids(source: Prompted, codec: Codec, side: Side, prefix: str = "") -> list[int]:
    """The prompt's ids; `messages` through the chat template of `side`. `prefix` is the path of `source`."""
    if source.prompt_ids is not None:
        return codec.ids(source.prompt_ids, f"{prefix}prompt_ids")
    if source.messages is not None:
        return await codec.chat(source.messages, side, f"{prefix}messages")
    return await codec.prompt(source.prompt or "", f"{prefix}prompt")


async def solution_ids(item: Item, codec: Codec, prefix: str) -> list[int]:
    if item.solution_ids is not None:
        return codec.ids(item.solution_ids, f"{prefix}solution_ids")
    return await codec.solution(item.solution or "", f"{prefix}solution")


def tokens_to_generate(sampling: Sampling, codec: Codec, prompt: int, field: str) -> int:
    """`max_tokens` if it fits after the prompt; where it was left to us, what fits."""
    if "max_tokens" in sampling.model_fields_set:
        codec.fits(prompt, sampling.max_tokens, field, "tokens to generate (sampling.max_tokens)")
        return sampling.max_tokens
    codec.fits(prompt, 1, field, "token to generate")
    return min(sampling.max_tokens, codec.max_len - prompt)


def within(actual: int, limit: int, field: str, what: str) -> None:
    if actual > limit:
        raise LimitExceeded(f"{actual} {what} exceed the limit of {limit}", field=field, limit=limit, actual=actual)


def check_items(count: int, limits: Limits) -> None:
    within(count, limits.items, "items", "items")
