"""`python -m workers.agent`: starts workers on this machine for a service on another one.

It answers those alone who know its token (`RL_ONOFF_WORKER_TOKEN`, or a file that `RL_ONOFF_WORKER_TOKEN_FILE` names).
`POST /worker` with a `RemoteSpec` starts a worker, a child process that listens on TCP, and answers with a line of JSON
for everything it says, a `{}` now and then, and at its end `{"code": n}`. The worker lives as long as that answer is
read: when the connection ends it is stopped. There is one at a time; the next is started when the last has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from rl_onoff.errors import ConfigurationError
from workers.launch.local import LocalWorker
from workers.wire import RemoteSpec

logger = logging.getLogger("rl_onoff.agent")

_LARGEST_SPEC = 1 << 20
#: Between two lines of an answer; a client that takes nothing for twice as long is gone.
BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.05
_SHORTEST_TOKEN = 16


class Agent:
    """The routes. `host` and `port` are where its workers listen; port 0: any that is free."""

    def __init__(self, token: str, host: str, port: int = 0) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._host = host
        self._port = port
        self._place = asyncio.Lock()
        self._holder = ""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_SPEC)
        app.add_routes([web.get("/health", self.health), web.post("/worker", self.worker)])
        return app

    async def health(self, _: web.Request) -> web.Response:
        """Alive; for probes, which have no token."""
        return web.json_response({"status": "ok"})

    async def worker(self, request: web.Request) -> web.StreamResponse:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if not hmac.compare_digest(digest, self._digest) or scheme.lower() != "bearer":
            return web.Response(status=401)
        try:
            spec = msgspec.json.decode(await request.read(), type=RemoteSpec)
        except msgspec.MsgspecError as error:
            return web.Response(status=400, text=str(error))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        _notice_a_dead_peer(request)
        while True:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._place.acquire()
                break
            except TimeoutError:
                await _tell(response, {"waiting": f"for the worker of pair {self._holder} to end"})
        try:
            self._holder = spec.worker.pair
            await self._live(spec, response)
        finally:
            self._place.release()
        return response

    async def _live(self, spec: RemoteSpec, response: web.StreamResponse) -> None:
        """One worker, until it ends or nobody reads any more."""
        listening = msgspec.structs.replace(spec.worker, host=self._host, port=self._port, socket="")
        worker = await LocalWorker.start(listening, (sys.executable, "-m", "workers"))
        logger.info("the worker of pair %s is process %d", spec.worker.pair, worker.pid)
        ended = asyncio.create_task(worker.wait())
        try:
            told, beaten = False, time.monotonic()
            while not ended.done():
                await asyncio.wait({ended}, timeout=BEAT_SECONDS if told else _POLL_SECONDS)
                if not told and worker.address is not None:
                    told = True
                    await _tell(response, {"address": worker.address})
                elif told or time.monotonic() - beaten >= BEAT_SECONDS:  # while it loads, too: that can take minutes
                    beaten = time.monotonic()
                    await _tell(response, {})
            if worker.problem is not None:
                await _tell(response, worker.problem)
            await _tell(response, {"code": ended.result()})
            await response.write_eof()
        finally:
            # Not to be cancelled again: the next worker needs the memory of this one.
            await asyncio.shield(worker.stop(spec.grace))
            ended.cancel()


def _notice_a_dead_peer(request: web.Request) -> None:
    """A machine that vanished sends no end of its connection: what was sent to it is not acknowledged."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * BEAT_SECONDS))


async def _tell(response: web.StreamResponse, said: dict[str, Any]) -> None:
    await response.write(json.dumps(said).encode() + b"\n")


def read_token() -> str:
    """From the environment. Raises ConfigurationError."""
    token = os.environ.get("RL_ONOFF_WORKER_TOKEN", "")
    if named := os.environ.get("RL_ONOFF_WORKER_TOKEN_FILE"):
        try:
            token = Path(named).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"RL_ONOFF_WORKER_TOKEN_FILE: {error}") from error
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigurationError(
            f"set RL_ONOFF_WORKER_TOKEN, or RL_ONOFF_WORKER_TOKEN_FILE, to a token of {_SHORTEST_TOKEN} characters "
            "at least, the same for the service"
        )
    return token


async def serve(agent: Agent, host: str, port: int) -> None:
    """Until SIGTERM or SIGINT; then the workers are stopped."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(agent.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    logger.info("listening on %s:%d", *runner.addresses[0][:2])
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.agent", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="where it and its workers listen")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--worker-port", type=int, default=0, help="default: any that is free")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(message)s", stream=sys.stderr)
    try:
        token = read_token()
    except ConfigurationError as error:
        print(f"rl-onoff: {error.detail}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(token, arguments))
    except OSError as error:
        print(f"rl-onoff: cannot listen on {arguments.host}:{arguments.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


async def _run(token: str, arguments: argparse.Namespace) -> None:
    await serve(Agent(token, arguments.host, arguments.worker_port), arguments.host, arguments.port)


if __name__ == "__main__":
    sys.exit(main())
