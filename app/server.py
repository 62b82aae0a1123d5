"""uvicorn, made to end: it stops when told to, and keeps no connection whose client stopped reading, or writing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.config import Settings
from rl_onoff.errors import LoadError

logger = logging.getLogger("rl_onoff.service")

_BACKLOG = 2048
#: What the kernel holds of an answer beside what is on its way. It would take megabytes, and minutes of a slow reader's
#: time, before anybody noticed.
_UNSENT_BYTES = 128 << 10
#: What cut connections get to be forgotten.
_CUT_SECONDS = 0.3


class Server(uvicorn.Server):
    """Serves `app`; `listening` is set once it does.

    Connections are cut that read nothing for `stalled_seconds`, or have not sent a request's head in `head_seconds`.
    """

    def __init__(self, app: FastAPI, stalled_seconds: float, head_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            backlog=_BACKLOG,
        )
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stalled_seconds = stalled_seconds
        #: What waits in a connection's buffer, and since when exactly so much.
        self._unread: dict[asyncio.Transport, tuple[int, float]] = {}
        self._head_seconds = head_seconds
        #: Connections that owe the head of a request, the request they sent last, and since when they owe it.
        self._headless: dict[asyncio.Transport, tuple[object, float]] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._cut_stalled()
            self._cut_headless()
        return await super().on_tick(counter)

    async def finish(self, serving: asyncio.Task[None], seconds: float) -> None:
        """Stop listening; cut what is still connected after `seconds`. Returns when `serving` has ended."""
        self.should_exit = True
        if (await asyncio.wait({serving}, timeout=seconds))[0]:
            return
        connections = [connection.transport for connection in self.server_state.connections]
        logger.warning("%d connections are cut", len(connections))
        for transport in connections:
            transport.abort()
        self.force_exit = True
        if not (await asyncio.wait({serving}, timeout=_CUT_SECONDS))[0]:
            serving.cancel()
            await asyncio.wait({serving})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would stop listening at once and die of the signal at the end; the service drains and exits 0."""
        yield

    def _cut_stalled(self) -> None:
        """Even an answer that was handed over whole stays in a connection's buffer until its client reads it."""
        now = time.monotonic()
        unread = {}
        for connection in self.server_state.connections:
            transport = connection.transport
            if transport is None or not (size := transport.get_write_buffer_size()):
                continue
            before, since = self._unread.get(transport, (size, now))
            if size == before and now - since >= self._stalled_seconds:
                transport.abort()
                continue
            unread[transport] = (size, since if size == before else now)
        self._unread = unread

    def _cut_headless(self) -> None:
        """uvicorn waits for the first request of a connection, and for the rest of any head, as long as it takes."""
        now = time.monotonic()
        headless = {}
        for connection in self.server_state.connections:
            transport, last = connection.transport, getattr(connection, "cycle", None)
            answering = last is not None and not last.response_complete
            # The timer is uvicorn's own, and runs between two requests.
            if transport is None or answering or getattr(connection, "timeout_keep_alive_task", None) is not None:
                continue
            before, since = self._headless.get(transport, (last, now))
            if before is last and now - since >= self._head_seconds:
                transport.abort()
                continue
            headless[transport] = (last, since if before is last else now)
        self._headless = headless


@contextmanager
def bound(settings: Settings) -> Iterator[socket.socket]:
    """The listening address, taken before any model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only where it sees TCP: 40 ms a request.
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # inherited by connections
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(_BACKLOG)  # where two have bound the same port, this is what fails
        except OSError as error:
            raise LoadError(
                f"cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
                "choose another port, or 0 for any"
            ) from error
        yield listener
