"""What the service is and how it is: /models, /health, /ready, /version, and a page for people."""

from __future__ import annotations

import platform
from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.deps import Service, ServiceDep
from app.docs import docs_page
from app.page import page
from rl_onoff.schemas import HealthResponse, ModelsResponse, ReadyResponse, VersionResponse
from rl_onoff.version import __version__

router = APIRouter(tags=["service"])


@router.get("/models", summary="What is served")
async def get_models(service: ServiceDep) -> ModelsResponse:
    return service.registry.cards()


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


@router.get("/", include_in_schema=False)
async def get_page(service: ServiceDep) -> HTMLResponse:
    return HTMLResponse(_page(service))


def _page(service: Service) -> str:
    cards = service.registry.cards().models
    rows = "".join(
        f"<tr><td>{escape(card.pair)}</td><td>{card.side.upper()}</td><td><code>{escape(card.name)}</code></td>"
        f"<td>{escape(card.backend)}</td><td>{card.vocab_size or ''}</td><td>{card.state}</td></tr>"
        for card in cards
    )
    links = " ".join(f'<a href="{path}">{path}</a>' for path in ("/models", "/ready", "/version", "/metrics"))
    return page(
        "rl-onoff",
        f"""<h1>rl-onoff {escape(__version__)}</h1>
<p>Two models that share a tokenizer, token by token: what each writes (<code>POST /generate</code>), what each believes
(<code>/distributions</code>), how far apart they are (<code>/divergence</code>), and what they write together when B
leads only where they differ (<code>/switch-generate</code>).</p>
<p>The API: <a href="/docs">/docs</a> for reading, <a href="/openapi.json">/openapi.json</a> for programs.</p>
<table><tr><th>Pair<th>Side<th>Model<th>Backend<th>Vocabulary<th>State</tr>{rows}</table>
<p>{links}</p>""",
    )
