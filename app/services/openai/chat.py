"""`/v1/chat/completions`: the conversation through the chat template, then as any other prompt.

A pair's prompt is rendered by A's template, or by B's where A has none, as on the native routes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.config import Settings
from app.services.beside import beside
from app.services.detokenize import Piece
from app.services.openai.answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from app.services.openai.names import Switched, resolve
from app.services.openai.requests import ChatRequest
from app.services.openai.running import Choice, Chunk, Prompt, Running, pair_of
from app.services.openai.tokens import chat_logprobs
from app.services.registry import Registry


class Chats:
    """One request, checked. `whole` or `stream` does the work."""

    def __init__(self, request: ChatRequest, running: Running) -> None:
        self._request = request
        self._running = running

    async def whole(self) -> ChatCompletion:
        await self._running.finish()
        return await beside(self._running.values, self._completion)

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._running.events()) as events:
            async for choice, event in events:
                if isinstance(event, Piece):
                    yield self._token(choice, event)
                elif event == "begin":
                    yield self._chunk(choice, ChatDelta(role="assistant", content=""))
                else:
                    yield self._end(choice)
        if self._request.include_usage:
            yield Chunk("token", self._body([], usage=self._running.usage()))
        yield Chunk("done", None)

    def _completion(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=choice.index,
                message=ChatAnswer(role="assistant", content=choice.text, refusal=None),
                logprobs=self._logprobs(choice, 0, len(choice.generation.token_ids) if choice.generation else 0),
                finish_reason=choice.finish_reason,
                **self._running.whole(choice),
            )
            for choice in self._running.choices
        ]
        return ChatCompletion(
            **self._running.head, object="chat.completion", choices=choices, usage=self._running.usage()
        )

    def _token(self, choice: Choice, piece: Piece) -> Chunk:
        logprobs = self._logprobs(choice, piece.index, piece.index + 1)
        told = self._running.token(choice, piece)
        return self._chunk(choice, ChatDelta(content=piece.text), logprobs=logprobs, **told)

    def _end(self, choice: Choice) -> Chunk:
        summary = self._running.summary(choice)
        return self._chunk(choice, ChatDelta(), finish_reason=choice.finish_reason, seed=choice.seed, **summary)

    def _chunk(self, choice: Choice, delta: ChatDelta, **members: object) -> Chunk:
        entry = ChatChunkChoice.model_validate(
            {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None, **members}
        )
        usage = {"usage": None} if self._request.include_usage else {}
        return Chunk("token", self._body([entry], **usage))

    def _body(self, choices: list[ChatChunkChoice], **usage: Usage | None) -> ChatChunk:
        return ChatChunk(**self._running.head, object="chat.completion.chunk", choices=choices, **usage)

    def _logprobs(self, choice: Choice, first: int, last: int) -> ChatLogprobs | None:
        if not self._request.logprobs or choice.generation is None:
            return None
        content = chat_logprobs(self._running.codec, choice.generation, first, last)
        return ChatLogprobs(content=content, refusal=None)


async def start(request: ChatRequest, registry: Registry, settings: Settings) -> Chats:
    """Check everything that can be checked."""
    target = await resolve(request.model, request.policy, registry, settings.resume_seconds)
    codec = pair_of(target).codec
    side = codec.template_side(target.served.side_a) if isinstance(target, Switched) else target.side
    ids = await codec.chat([message.plain() for message in request.messages], side, "messages")
    max_tokens = request.max_tokens or request.max_completion_tokens
    codec.fits(len(ids), max_tokens or 1, "messages", "tokens to generate (max_tokens)")
    running = Running(
        "chatcmpl",
        request,
        target,
        [Prompt(ids, "", max_tokens or codec.max_len - len(ids))],
        settings.limits,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        score_prompts=False,
    )
    return Chats(request, running)
