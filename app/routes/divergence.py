"""POST /divergence."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.body import StrictRoute
from app.deps import ServiceDep
from app.responses import json_response
from app.routes.problems import PROBLEMS
from app.services.divergence import measure
from app.watch import attended
from rl_onoff.schemas import DivergenceRequest, DivergenceResponse

router = APIRouter(route_class=StrictRoute, tags=["scoring"])


@router.post(
    "/divergence",
    response_model=DivergenceResponse,
    responses=PROBLEMS,
    summary="How far apart the two models are at every token",
)
async def post_divergence(body: DivergenceRequest, request: Request, service: ServiceDep) -> Response:
    """Infinite values are `null` and their positions listed."""

    async def answer() -> Response:
        frames = service.cache.open(request.headers.get("cache-control"))
        response = await measure(body, service.registry, service.settings.limits, frames)
        return await json_response(response)

    return await attended(answer(), request, service.drain)
