"""`/v1/completions`: texts continued, and scored where `echo` asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.config import Settings
from app.services.beside import beside
from app.services.detokenize import Piece
from app.services.openai.answers import Completion, CompletionChoice, CompletionLogprobs, Usage, WalkSummary
from app.services.openai.names import resolve
from app.services.openai.requests import CompletionRequest
from app.services.openai.running import Choice, Chunk, Prompt, Running, pair_of
from app.services.openai.tokens import completion_logprobs, joined, prompt_logprobs
from app.services.registry import Registry
from app.services.text import Codec


class Completions:
    """One request, checked. `whole` or `stream` does the work."""

    def __init__(self, request: CompletionRequest, running: Running) -> None:
        self._request = request
        self._running = running
        self._codec = running.codec

    async def whole(self) -> Completion:
        await self._running.finish()
        return await beside(self._running.values, self._completion)

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._running.events()) as events:
            async for choice, event in events:
                if isinstance(event, Piece):
                    yield self._chunk(self._token(choice, event))
                elif event == "end":
                    yield self._chunk(self._end(choice))
                elif self._request.echo:
                    yield self._chunk(await asyncio.to_thread(self._echo, choice), long=True)
        if self._request.include_usage:
            yield Chunk("token", self._body([], usage=self._running.usage()))
        yield Chunk("done", None)

    def _completion(self) -> Completion:
        choices = [self._whole(choice) for choice in self._running.choices]
        return self._body(choices, usage=self._running.usage())

    def _whole(self, choice: Choice) -> CompletionChoice:
        count = len(choice.generation.token_ids) if choice.generation else 0
        own = self._logprobs(choice, 0, count)
        if own is not None and self._request.echo:
            own = joined(prompt_logprobs(self._codec, choice), own)
        return CompletionChoice(
            index=choice.index,
            text=(choice.prompt.text if self._request.echo else "")
            + (choice.generation.text if choice.generation else ""),
            logprobs=own,
            finish_reason=choice.finish_reason,
            **self._walked(choice),
            **self._running.whole(choice),
        )

    def _token(self, choice: Choice, piece: Piece) -> CompletionChoice:
        return CompletionChoice(
            index=choice.index,
            text=piece.text,
            logprobs=self._logprobs(choice, piece.index, piece.index + 1),
            finish_reason=None,
            **self._running.token(choice, piece),
        )

    def _echo(self, choice: Choice) -> CompletionChoice:
        logprobs = prompt_logprobs(self._codec, choice) if self._request.logprobs is not None else None
        return CompletionChoice(
            index=choice.index,
            text=choice.prompt.text,
            logprobs=logprobs,
            finish_reason=None,
            token_ids=choice.prompt.ids,
            **self._walked(choice),
        )

    def _end(self, choice: Choice) -> CompletionChoice:
        summary = self._running.summary(choice)
        return CompletionChoice(
            index=choice.index,
            text="",
            logprobs=None,
            finish_reason=choice.finish_reason,
            seed=choice.seed,
            **summary,
        )

    def _chunk(self, choice: CompletionChoice, *, long: bool = False) -> Chunk:
        usage = {"usage": None} if self._request.include_usage else {}
        return Chunk("token", self._body([choice], **usage), long)

    def _body(self, choices: list[CompletionChoice], **usage: Usage | None) -> Completion:
        return Completion(**self._running.head, object="text_completion", choices=choices, **usage)

    def _logprobs(self, choice: Choice, first: int, last: int) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        begin = len(choice.prompt.text) if self._request.echo else 0
        return completion_logprobs(self._codec, choice, begin, first, last)

    @staticmethod
    def _walked(choice: Choice) -> dict[str, WalkSummary]:
        scored = choice.scored
        if scored is None or not scored.leads:
            return {}
        walk = WalkSummary(
            positions=len(scored.leads),
            b_positions=scored.leads.count("b"),
            leads=scored.leads,
            divergences=scored.divergences,
        )
        return {"prompt_switch": walk}


async def start(request: CompletionRequest, registry: Registry, settings: Settings) -> Completions:
    """Check everything that can be checked."""
    target = await resolve(request.model, request.policy, registry, settings.resume_seconds)
    codec = pair_of(target).codec
    running = Running(
        "cmpl",
        request,
        target,
        [await _prompt(codec, entry, index, request) for index, entry in enumerate(request.prompt)],
        settings.limits,
        logprobs=request.logprobs,
        score_prompts=request.echo and request.logprobs is not None,
    )
    return Completions(request, running)


async def _prompt(codec: Codec, entry: str | list[int], index: int, request: CompletionRequest) -> Prompt:
    field = "prompt" if len(request.prompt) == 1 else f"prompt.{index}"
    if isinstance(entry, str):
        ids, text = await codec.prompt(entry, field), entry
    else:
        ids = codec.ids(entry, field)
        text = codec.decode(ids) if request.echo else ""
    codec.fits(len(ids), request.max_tokens, field, "tokens to generate (max_tokens)")
    return Prompt(ids, text, request.max_tokens)
