"""POST /distributions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.body import StrictRoute
from app.deps import ServiceDep
from app.responses import PartsResponse, StreamedResponse, json_response
from app.routes.problems import NOT_ACCEPTABLE, PROBLEMS
from app.services.beside import beside
from app.services.distributions import score, stream
from app.services.safetensors import MEDIA_TYPE
from app.watch import attended
from rl_onoff.schemas import DistributionsRequest, DistributionsResponse

router = APIRouter(route_class=StrictRoute, tags=["scoring"])


@router.post(
    "/distributions",
    response_model=DistributionsResponse,
    responses={200: {"content": {MEDIA_TYPE: {}}}, **NOT_ACCEPTABLE, **PROBLEMS},
    summary="What one model believes at every token",
)
async def post_distributions(body: DistributionsRequest, request: Request, service: ServiceDep) -> Response:
    """JSON holds the `top_k` of every row. With `Accept: application/vnd.safetensors` the answer is a safetensors
    file with `{i}.values` (`[T, V]`, or `[T, k]` beside `{i}.ids` and `{i}.tail`), `{i}.token_ids`,
    `{i}.token_logprobs` and `{i}.entropy`, and in its metadata, as JSON, what JSON says beside the rows; whole rows are
    sent while they are computed, and what fails then ends the body early."""
    binary = MEDIA_TYPE in request.headers.get("accept", "")

    async def answer() -> Response:
        limits = service.settings.limits
        frames = service.cache.open(request.headers.get("cache-control"))
        if binary and body.top_k is None:
            rows = await stream(body, service.registry, limits, frames)
            return StreamedResponse(rows.parts, rows.length, MEDIA_TYPE, service.drain)
        scores = await score(body, service.registry, limits, frames, binary=binary)
        if binary:
            return PartsResponse(scores.as_safetensors(), media_type=MEDIA_TYPE)
        return await json_response(await beside(scores.values, scores.as_json))

    return await attended(answer(), request, service.drain)
