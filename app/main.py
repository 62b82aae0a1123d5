"""The application, and the process around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app import errors, logs
from app.access import Access
from app.config import Settings, check_agents, check_exposure
from app.deps import Service
from app.keys import Keys, secured
from app.middleware import Admission, Boundary, Head
from app.record import current
from app.routes import distributions, divergence, generate, openai, switch, system, web
from app.server import Server, bound
from app.services.cache.counters import CacheCounters
from app.services.cache.frames import Cache
from app.services.drain import Drain
from app.services.reconnect import Streams
from app.services.registry import Registry
from app.services.request_metrics import RequestMetrics
from app.services.supervisor import Supervisor
from app.services.worker import CrashLoop
from app.sources import check_sources
from app.tracing import Tracing
from app.watch import ClientGone
from rl_onoff.errors import ConfigurationError, LoadError, OnOffError
from rl_onoff.version import __version__

EXIT_OK = 0
EXIT_LOAD_FAILED = 1
EXIT_CONFIGURATION = 2
EXIT_CRASH_LOOP = os.EX_SOFTWARE  # 70

#: For connections to end by themselves once every request has been answered.
_FINISH_SECONDS = 1.0
#: The same, and what workers get between SIGTERM and SIGKILL, when the operator asked twice.
_HURRIED_SECONDS = 0.4

_DESCRIPTION = """Compare a base model with its RL-tuned version token by token, and generate while switching between
them. Divergences are in nats unless `units` says otherwise; `null` stands for an infinite number, in statistics also
for one that cannot be told. Errors are RFC 9457 problems. `X-Request-Timeout` bounds the seconds a request may take,
waiting for its turn included."""


def create_app(settings: Settings) -> FastAPI:
    """The service; who serves it starts and stops `service.supervisor`. Routes answer 503 until workers are ready."""
    supervisor = Supervisor(settings)
    cache = Cache(settings, CacheCounters(supervisor.telemetry.registry))
    service = Service(settings, supervisor, Registry(supervisor), Drain(), cache, Streams(settings.reconnect_seconds))
    app = _App(
        keyed=bool(settings.key_digests),
        title="rl-onoff",
        version=__version__,
        description=_DESCRIPTION,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page is blank without the internet; ours is in `routes.system`
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    app.add_exception_handler(ClientGone, _no_one)
    app.add_middleware(Admission, limits=settings.limits, drain=service.drain)
    app.add_middleware(Keys, digests=settings.key_digests, also_open=web.paths())
    app.add_middleware(Head)
    app.add_middleware(Boundary, send_seconds=settings.send_seconds)
    app.add_middleware(
        Access, metrics=RequestMetrics(supervisor.telemetry.registry)
    )  # the last one added is the outermost
    app.state.tracing = Tracing(app) if settings.otel else None
    for module in (generate, distributions, divergence, switch, openai, system, web):
        app.include_router(module.router)
    return app


class _App(FastAPI):
    def __init__(self, *, keyed: bool, **more: Any) -> None:
        self._keyed = keyed
        super().__init__(**more)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        return secured(document) if self._keyed else document


async def _no_one(_: Request, __: Exception) -> Response:
    current().error = "client-gone"
    return Response(status_code=499)  # never sent: the connection is gone


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `on_ready` is called with the URL once every pair is loaded."""
    logs.configure(settings.log_format)
    try:
        check_exposure(settings)
        check_agents(settings)
        check_sources(settings)
        with bound(settings) as listener:
            return asyncio.run(_serve(settings, listener, on_ready))
    except CrashLoop as error:
        _say(str(error))
        return EXIT_CRASH_LOOP
    except OnOffError as error:
        _say(error.detail)
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_LOAD_FAILED


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str], None] | None) -> int:
    app = create_app(settings)
    service: Service = app.state.service
    stop = _stop_signal(service.drain)
    try:
        await service.supervisor.start()
        server = Server(app, settings.send_seconds, settings.limits.body_seconds)
        await _run(service, server, listener, on_ready, stop)
    except OSError as error:
        raise LoadError(f"the service cannot go on: {error}") from error
    finally:
        await _stop_workers(service)
        await service.cache.close()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
    return EXIT_OK


async def _run(
    service: Service,
    server: Server,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None,
    stop: asyncio.Event,
) -> None:
    """Until asked to stop. Raises what ends the server, or a pair for good."""
    drain = service.drain
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_watch(service, server, listener, on_ready))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done() and not watching.done():
            await drain.finish(service.settings.drain_seconds)
    finally:
        drain.draining = True
        drain.expired.set()
        await server.finish(serving, _HURRIED_SECONDS if drain.hurried.is_set() else _FINISH_SECONDS)
        stopping.cancel()
        watching.cancel()
        outcomes = await asyncio.gather(serving, watching, stopping, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _stop_workers(service: Service) -> None:
    """With the time `stop_seconds` gives them, or hardly any once the operator has asked twice."""
    supervisor, drain = service.supervisor, service.drain
    stopping = asyncio.create_task(supervisor.stop(service.settings.stop_seconds))
    hurried = asyncio.create_task(drain.hurried.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not (await asyncio.wait({stopping}, timeout=_HURRIED_SECONDS))[0]:
        supervisor.kill()
    hurried.cancel()
    await stopping


async def _watch(
    service: Service, server: Server, listener: socket.socket, on_ready: Callable[[str], None] | None
) -> None:
    """Announce readiness; then raise what ends a pair for good."""
    await server.listening.wait()
    await service.supervisor.until_ready()
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _say(f"serving on {url}")
    if on_ready is not None:
        on_ready(url)
    await service.supervisor.until_failed()


def _stop_signal(drain: Drain) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second ends the drain."""
    stop = asyncio.Event()

    def handle() -> None:
        drain.draining = True
        if stop.is_set():
            drain.expired.set()
            drain.hurried.set()
        stop.set()

    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, handle)
    return stop


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk under the log is no reason to end
        print(f"rl-onoff: {text}", file=sys.stderr, flush=True)
