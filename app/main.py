"""The application, and the process around it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app import errors
from app.config import Settings, check_exposure
from app.deps import Service
from app.middleware import Admission, Boundary
from app.routes import distributions, divergence, generate, switch, system
from app.services.drain import Drain
from app.services.registry import Registry
from app.services.supervisor import CrashLoop, Supervisor
from app.watch import ClientGone
from rl_onoff.errors import ConfigurationError, LoadError, OnOffError
from rl_onoff.version import __version__

EXIT_OK = 0
EXIT_LOAD_FAILED = 1
EXIT_CONFIGURATION = 2
EXIT_CRASH_LOOP = os.EX_SOFTWARE  # 70

#: What workers get between SIGTERM and SIGKILL when the operator asked twice.
_HURRIED_STOP = 0.5

_DESCRIPTION = """Compare a base model with its RL-tuned version token by token, and generate while switching between
them. Divergences are in nats unless `units` says otherwise; `null` stands for an infinite number. Errors are RFC 9457
problems."""


def create_app(settings: Settings) -> FastAPI:
    """The service. Workers live as long as the lifespan; routes answer 503 until they are ready."""
    supervisor = Supervisor(settings)
    service = Service(settings, supervisor, Registry(supervisor), Drain())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await supervisor.start()
        try:
            yield
        finally:
            await supervisor.stop(_HURRIED_STOP if service.drain.expired.is_set() else settings.stop_seconds)

    app = FastAPI(
        title="rl-onoff",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    app.add_exception_handler(ClientGone, _no_one)
    app.add_middleware(Admission, limits=settings.limits, drain=service.drain)
    app.add_middleware(Boundary)  # the last one added is the outermost
    for module in (generate, distributions, divergence, switch, system):
        app.include_router(module.router)
    return app


async def _no_one(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # never sent: the connection is gone


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `on_ready` is called with the URL once every pair is loaded."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        check_exposure(settings)
        with _bound(settings) as listener:
            return asyncio.run(_serve(settings, listener, on_ready))
    except OnOffError as error:
        _say(error.detail)
        if isinstance(error, CrashLoop):
            return EXIT_CRASH_LOOP
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_LOAD_FAILED


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str], None] | None) -> int:
    app = create_app(settings)
    service: Service = app.state.service
    server = _Server(
        uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False, lifespan="on")
    )
    stop = _stop_signal(service.drain)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_watch(service, server, listener, on_ready))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done() and not watching.done():
            await service.drain.finish(settings.drain_seconds)
    finally:
        service.drain.draining = True
        service.drain.expired.set()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        stopping.cancel()
        watching.cancel()
        outcome, _ = await asyncio.gather(watching, stopping, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome
    return EXIT_OK


async def _watch(
    service: Service, server: _Server, listener: socket.socket, on_ready: Callable[[str], None] | None
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


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would stop listening at once, and die of the signal at the end; `_serve` drains first and exits 0."""
        yield


def _stop_signal(drain: Drain) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second ends the drain."""
    stop = asyncio.Event()

    def handle() -> None:
        drain.draining = True
        if stop.is_set():
            drain.expired.set()
        stop.set()

    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, handle)
    return stop


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """The listening address, taken before any model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only where it sees TCP: 40 ms a request.
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise LoadError(
                f"cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
                "choose another port, or 0 for any"
            ) from error
        yield listener


def _say(text: str) -> None:
    print(f"rl-onoff: {text}", file=sys.stderr, flush=True)
