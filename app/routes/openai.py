"""/v1 as OpenAI's clients know it, and the tokenizer routes that lm-evaluation-harness asks beside it.

Who may ask is decided before any route, by the middleware; here is nothing but what is asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from app.body import StrictRoute
from app.deps import Service, ServiceDep
from app.openai_errors import error_body
from app.responses import json_response
from app.routes.problems import PROBLEMS
from app.services.openai import chat, completions, tokenizer
from app.services.openai.answers import ChatCompletion, Completion, ModelEntry, ModelList
from app.services.openai.names import cards, resolve
from app.services.openai.requests import ChatRequest, CompletionRequest
from app.services.openai.running import Chunk
from app.services.openai.tokenizer import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from app.sse import EventStream, begin
from app.watch import attended
from rl_onoff.errors import WorkerUnavailable

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in (("4XX", "The request is at fault"), ("5XX", "The service is (503: Retry-After)"))
}
_STREAM_OR_ERRORS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}, **_ERRORS}


class _Checked(Protocol):
    """A request that can be answered either way."""

    async def whole(self) -> BaseModel: ...

    def stream(self) -> AsyncGenerator[Chunk, None]: ...


class ChunkStream(EventStream):
    """Ends with `[DONE]`, or with an error that OpenAI's clients raise."""

    @staticmethod
    def _event(problem: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(error_body(problem))}\n\n".encode()


async def _answer(
    check: Callable[[], Awaitable[_Checked]], stream: bool, request: Request, service: Service
) -> Response:
    async def answer() -> Response:
        checked = await check()
        if not stream:
            return await json_response(await checked.whole(), exclude_unset=True)
        chunks = await begin(checked.stream(), service.settings.ping_seconds)
        return ChunkStream(chunks, settings=service.settings, drain=service.drain)

    return await attended(answer(), request, service.drain)


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=_STREAM_OR_ERRORS,
    summary="A text, continued or scored",
)
async def post_completions(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    """With `echo` and `logprobs` the log-probabilities of the prompt: of a pair each position's by the model that
    leads there when the policy walks over it. With `stream: true` one chunk per token, then `[DONE]` or an error."""
    return await _answer(
        lambda: completions.start(body, service.registry, service.settings), body.stream, request, service
    )


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=_STREAM_OR_ERRORS,
    summary="The next message of a conversation",
)
async def post_chat_completions(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    """The chat template is the model's own; of a pair A's, or B's where A has none."""
    return await _answer(lambda: chat.start(body, service.registry, service.settings), body.stream, request, service)


@router.get("/v1/models", responses=_ERRORS, summary="Models, pairs and named policies")
async def get_models(service: ServiceDep) -> ModelList:
    """Beside these, `switch:js>0.1` and its like are models."""
    return ModelList(data=[_entry(card, service) for card in cards(service.registry)])


@router.get("/v1/models/{model:path}", responses=_ERRORS, summary="One of them")
async def get_model(model: str, service: ServiceDep) -> ModelEntry:
    known = {card["id"]: card for card in cards(service.registry)}
    if model not in known:
        with contextlib.suppress(WorkerUnavailable):  # a name all the same
            await resolve(model, None, service.registry, 0)
    return _entry(known.get(model, {"id": model}), service)


def _entry(card: dict[str, Any], service: Service) -> ModelEntry:
    return ModelEntry(created=service.started, **card)


@router.post("/tokenize", responses=PROBLEMS, summary="A text as token ids")
async def post_tokenize(body: TokenizeRequest, request: Request, service: ServiceDep) -> TokenizeResponse:
    answer = tokenizer.tokenize(body, service.registry, service.settings.resume_seconds)
    return await attended(answer, request, service.drain)


@router.post("/detokenize", responses=PROBLEMS, summary="Token ids as a text")
async def post_detokenize(body: DetokenizeRequest, request: Request, service: ServiceDep) -> DetokenizeResponse:
    answer = tokenizer.detokenize(body, service.registry, service.settings.resume_seconds)
    return await attended(answer, request, service.drain)


@router.get("/tokenizer_info", responses=PROBLEMS, summary="Special tokens and the chat template")
async def get_tokenizer_info(request: Request, service: ServiceDep, model: str | None = None) -> dict[str, Any]:
    answer = tokenizer.tokenizer_info(model, service.registry, service.settings.resume_seconds)
    return await attended(answer, request, service.drain)
