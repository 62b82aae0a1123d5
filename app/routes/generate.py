"""POST /generate."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.body import StrictRoute
from app.deps import ServiceDep
from app.responses import json_response
from app.routes.problems import PROBLEMS
from app.services import generate
from app.services.events import result
from app.sse import EventStream, begin
from app.watch import attended
from rl_onoff.schemas import GenerateRequest, GenerateResponse

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **PROBLEMS},
    summary="Samples of one model",
)
async def post_generate(body: GenerateRequest, request: Request, service: ServiceDep) -> Response:
    """With `stream: true`: `token` events of all samples as they come, then one `done` (the response) or `error`."""
    settings = service.settings

    async def stream() -> EventStream:
        events = await begin(await generate.start(body, service.registry, settings.limits), settings.ping_seconds)
        return EventStream(events, settings=settings, drain=service.drain)

    async def whole() -> Response:
        return await json_response(
            await result(await generate.start(body, service.registry, settings.limits), GenerateResponse)
        )

    return await attended(stream() if body.stream else whole(), request, service.drain)
