"""The worker process: one loaded pair behind the link of `workers.wire`.

Every job is answered or failed, never dropped. A job that raises fails alone; the process lives on. Closing the
connection cancels the job at its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from rl_onoff.errors import ConfigurationError, InternalError, InvalidField, OnOffError, OutOfMemory, WorkerLost
from workers import floor, generation, lockstep, lookahead, scoring, walk
from workers.backends.base import ComparesItself, GeneratesItself, LivesElsewhere, Pair, SwitchesItself
from workers.wire import (
    CONTENT_TYPE,
    Compare,
    Failed,
    Frame,
    Generate,
    Health,
    Job,
    Score,
    SwitchGenerate,
    SwitchScore,
    decode_job,
    encode,
    encode_frame,
)

logger = logging.getLogger("rl_onoff.worker")

MAX_JOB_BYTES = 64 << 20
#: What torch's allocator of this machine's own memory says, and Python where a thread's stack finds no room.
_NO_MEMORY = ("can't allocate memory", "can't start new thread")
_LEASE_STEPS = 10


def answer(pair: Pair, job: Job) -> AsyncIterator[Frame]:
    """The frames that answer a job, the terminal one included. Raises what the job does wrong."""
    match job:
        case Generate():
            _check_ids(pair, job.ids, job.max_tokens)
            return pair.generate(job) if isinstance(pair, GeneratesItself) else generation.generate(pair, job)
        case Score():
            _check_ids(pair, job.ids)
            _check_start(job.start, job.ids)
            if job.top_k is not None and not 1 <= job.top_k <= pair.info.a.vocab_size:
                raise InvalidField(f"must lie in [1, {pair.info.a.vocab_size}]", field="top_k")
            if job.merge and job.kind == "logits":
                raise InvalidField("no model has a logit of merged tokens", field="merge")
            return scoring.score(pair, job)
        case SwitchScore():
            _check_ids(pair, job.ids)
            _check_start(job.start, job.ids)
            return walk.walk(pair, job)
        case Compare():
            for ids, start in ((job.a_ids, job.a_start), (job.b_ids, job.b_start)):
                _check_ids(pair, ids)
                _check_start(start, ids)
            if job.a_ids[job.a_start :] != job.b_ids[job.b_start :]:
                raise InvalidField("A and B must score the same solution", field="b_ids")
            if job.floor is not None:
                return floor.floor(pair, job)
            return pair.compare(job) if isinstance(pair, ComparesItself) else scoring.compare(pair, job)
        case SwitchGenerate():
            _check_ids(pair, job.ids, job.max_tokens)
            if job.lookahead == 0:
                return lockstep.switch_generate(pair, job)
            if isinstance(pair, SwitchesItself):
                return pair.switch_generate(job)
            return lookahead.switch_generate(pair, job)


def _check_ids(pair: Pair, ids: list[int], more: int = 0) -> None:
    # An id beyond the embedding kills some engines and silently reads other memory in others: never let one through.
    vocab_size = pair.info.a.vocab_size
    limit = min(pair.info.a.max_len, pair.info.b.max_len)
    if not ids or len(ids) + more > limit:
        asked = f"{len(ids)} tokens" + (f" and {more} to generate" if more else "")
        raise InvalidField(f"has {asked}; there must be one at least, and {limit} in all at most", field="ids")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InvalidField(f"token ids must lie in [0, {vocab_size})", field="ids")


def _check_start(start: int, ids: list[int]) -> None:
    if not 1 <= start < len(ids):
        raise InvalidField(f"must lie in [1, {len(ids)})", field="start")


class Host:
    """The routes over one pair."""

    def __init__(self, pair: Pair, token: str = "") -> None:
        self._pair = pair
        self._active = 0
        self._unasked = 0
        self._bearer = f"Bearer {token}".encode() if token else b""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_JOB_BYTES, middlewares=[self._admit] if self._bearer else [])
        app.add_routes([web.get("/info", self.info), web.get("/health", self.health), web.post("/run", self.run)])
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._bearer):
            return web.Response(status=401)
        return await handler(request)

    async def info(self, _: web.Request) -> web.Response:
        return web.Response(body=encode(self._pair.info), content_type=CONTENT_TYPE)

    async def health(self, _: web.Request) -> web.Response:
        self._unasked = 0
        health = Health(steps=self._pair.steps, active=self._active, pid=os.getpid())
        return web.Response(body=encode(health), content_type=CONTENT_TYPE)

    async def until_forgotten(self, lease: float) -> None:
        """Raises WorkerLost: a service on another machine may be gone without a word, and this one hold its GPUs."""
        # Counted in steps: after a pause of this process, questions of the meantime are still to be answered.
        while self._unasked < _LEASE_STEPS:
            await asyncio.sleep(lease / _LEASE_STEPS)
            self._unasked += 1
        raise WorkerLost(f"no service has asked for this worker's health for {lease:g} s")

    async def run(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        await response.prepare(request)
        self._active += 1
        try:
            async for frame in self._frames(body):
                await response.write(encode_frame(frame))
        except (ConnectionError, asyncio.CancelledError):
            logger.debug("the service closed a job")
            raise
        except WorkerLost as error:  # this process ends: the broken connection says so, as after any other death
            logger.error("a job was cut off: %s", error.detail)
            if request.transport is not None:
                request.transport.abort()
            return response
        finally:
            self._active -= 1
        with contextlib.suppress(ConnectionError):  # the service may have left with the last frame
            await response.write_eof()
        return response

    async def _frames(self, body: bytes) -> AsyncIterator[Frame]:
        try:
            frames = answer(self._pair, decode_job(body))
            async for frame in frames:
                yield frame
        except WorkerLost:
            raise
        except OnOffError as error:
            yield Failed.of(error)
        except msgspec.MsgspecError as error:
            yield Failed.of(InternalError(f"the worker cannot read this job: {error}"))
        except MemoryError:
            yield Failed.of(OutOfMemory("the worker is out of memory; try again, or ask for less at once"))
        except Exception as error:  # the boundary of a job: it fails alone, with the reason in the log
            if _is_out_of_memory(error):
                yield Failed.of(OutOfMemory("the device is out of memory; try again, or ask for less at once"))
            else:
                logger.exception("a job failed")
                yield Failed.of(InternalError(f"the worker failed on this request ({type(error).__name__})"))


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch, whose class it is, need not be there.
    return type(error).__name__ == "OutOfMemoryError" or any(said in str(error) for said in _NO_MEMORY)


async def serve(
    pair: Pair,
    socket: str,
    *,
    host: str = "",
    port: int = 0,
    token: str = "",
    lease: float = 0.0,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish nothing new, cancel what runs, close the models.

    On the unix `socket`; with `host` on its `port` or a free one, for who knows `token`, `announce` being told which.
    Raises WorkerLost when the pair's engine ends before, or when nobody asked for its health for `lease` seconds.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hosting = Host(pair, token)
    application = hosting.application()
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    if host:
        if not token:
            raise ConfigurationError("a worker that listens to a network needs a token")
        await web.TCPSite(runner, host, port).start()
        announce("{}:{}".format(*runner.addresses[0][:2]))
    else:
        previous = os.umask(0o177)  # the socket is born 0600: no moment in which another user could connect
        try:
            await web.UnixSite(runner, socket).start()
        finally:
            os.umask(previous)
    logger.info("pair %s is ready", pair.info.name)
    ends: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if isinstance(pair, LivesElsewhere):
        ends.append(asyncio.create_task(_raise_lost(pair)))
    if lease:
        ends.append(asyncio.create_task(hosting.until_forgotten(lease)))
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
    finally:
        for end in ends:
            end.cancel()
        await runner.cleanup()
        await pair.close()


async def _raise_lost(pair: LivesElsewhere) -> None:
    raise await pair.until_lost()
