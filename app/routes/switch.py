"""POST /switch-generate."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.body import StrictRoute
from app.deps import ServiceDep
from app.responses import json_response
from app.routes.problems import PROBLEMS
from app.services import switch
from app.services.events import result
from app.sse import EventStream, begin
from app.watch import attended
from rl_onoff.schemas import SwitchRequest, SwitchResponse

LastEventId = Annotated[
    str,
    Header(
        description="the `id` of the last event of a stream that broke off",
        json_schema_extra={"pattern": "^((switch-)?[0-9]{1,9})?$"},  # `Place` holds to it, and names the field
    ),
]

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/switch-generate",
    response_model=SwitchResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **PROBLEMS},
    summary="One text by both models: B leads where the policy says so",
)
async def post_switch_generate(
    body: SwitchRequest, request: Request, service: ServiceDep, last_event_id: LastEventId = ""
) -> Response:
    """With `stream: true`: `token` events, each change of the lead as a `switch` event before the token it applies
    to, then one `done` (the response) or `error`."""
    settings = service.settings

    async def stream() -> EventStream:
        opened, events = await service.streams.open(
            body,
            service.registry,
            last_event_id=last_event_id,
            request_id=request.state.request_id,
            client=request.headers.get("authorization", ""),
        )
        return EventStream(
            await begin(events, settings.ping_seconds),
            settings=settings,
            drain=service.drain,
            emitted=opened.place.token,
            superseded=opened.superseded,
        )

    async def whole() -> Response:
        return await json_response(
            await result((await switch.prepare(body, service.registry)).events(), SwitchResponse)
        )

    return await attended(stream() if body.stream else whole(), request, service.drain)
