"""POST /switch-generate."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.body import StrictRoute
from app.deps import ServiceDep
from app.routes.problems import PROBLEMS
from app.services import switch
from app.services.events import result
from app.sse import EventStream, begin
from app.watch import attended
from rl_onoff.schemas import SwitchRequest, SwitchResponse

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/switch-generate",
    response_model=SwitchResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **PROBLEMS},
    summary="One text by both models: B leads where the policy says so",
)
async def post_switch_generate(
    body: SwitchRequest, request: Request, service: ServiceDep
) -> SwitchResponse | EventStream:
    """With `stream: true`: `token` events, each change of the lead as a `switch` event before the token it applies
    to, then one `done` (the response) or `error`."""
    settings = service.settings

    async def stream() -> EventStream:
        events = await begin(await switch.start(body, service.registry), settings.ping_seconds)
        return EventStream(events, settings=settings, drain=service.drain)

    async def whole() -> SwitchResponse:
        return await result(await switch.start(body, service.registry), SwitchResponse)

    return await attended(stream() if body.stream else whole(), request, service.drain)
