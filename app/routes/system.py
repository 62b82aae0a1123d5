"""What the service is and how it is: models, examples, health, metrics, and its API for people to read."""

from __future__ import annotations

import asyncio
import platform
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from app.deps import ServiceDep
from app.docs import docs_page
from app.routes.problems import PROBLEMS
from app.services.examples import MOST, read_examples
from rl_onoff.schemas import ExamplesResponse, HealthResponse, ModelsResponse, ReadyResponse, VersionResponse
from rl_onoff.version import __version__

router = APIRouter(tags=["service"])


@router.get("/models", summary="What is served")
async def get_models(service: ServiceDep) -> ModelsResponse:
    return service.registry.cards()


@router.get("/examples", responses=PROBLEMS, summary="Problems to try each pair on")
async def get_examples(
    service: ServiceDep, limit: Annotated[int, Query(ge=1, le=MOST, description="for each pair")] = 100
) -> ExamplesResponse:
    """The first ones of the file each pair's configuration names; none where it names none."""
    pairs = [worker.config for worker in service.supervisor.pairs.values()]
    return await asyncio.to_thread(read_examples, pairs, limit)


@router.get("/health", summary="The process is alive")
async def get_health() -> HealthResponse:
    return HealthResponse()


@router.get(
    "/ready",
    responses={503: {"model": ReadyResponse, "description": "A pair is not, or the service is shutting down"}},
    summary="Every pair is loaded",
)
async def get_ready(service: ServiceDep, response: Response) -> ReadyResponse:
    ready = service.supervisor.ready and not service.drain.draining
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return ReadyResponse(ready=ready, pairs={name: pair.state for name, pair in service.supervisor.pairs.items()})


@router.get("/version")
async def get_version() -> VersionResponse:
    return VersionResponse(version=__version__, python=platform.python_version())


@router.get("/metrics", include_in_schema=False)
async def get_metrics(service: ServiceDep) -> Response:
    """Prometheus counters."""
    return Response(service.supervisor.telemetry.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def get_docs(request: Request) -> HTMLResponse:
    return HTMLResponse(docs_page(request.app.openapi()))
