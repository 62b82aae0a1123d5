"""One worker of a pair through all its lives: started, watched, restarted, stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from app.config import Settings
from app.pair_config import PairConfig
from app.record import current
from app.services.gate import Ticket
from app.services.launch import has_the_machine, launch
from app.services.link import Link
from app.services.replicas import Replicas
from app.services.telemetry import Meter
from app.services.text import Codec
from rl_onoff.errors import LoadError, OnOffError, WorkerUnavailable, from_problem
from workers.launch.local import LocalWorker
from workers.wire import PairInfo

logger = logging.getLogger("rl_onoff.service")

State = Literal["starting", "ready", "lost", "failed"]

_POLL_SECONDS = 0.05
_HEARTBEAT_SECONDS = 0.5
#: Heartbeats missed in a row that make others of its pair be preferred; one may be missed where a machine is busy.
_SILENT_AFTER = 3
#: Pauses before the first, second, ... restart; the last for all that follow.
_BACKOFF = (0.0, 0.5, 1.0, 2.0)
_DEATHS_WINDOW = 600.0


class CrashLoop(Exception):
    """A worker dies again and again: the service ends rather than pretend. No request is ever told."""


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """A pair that answers now, in one of its workers."""

    config: PairConfig
    info: PairInfo
    codec: Codec
    link: Link
    worker: PairWorker

    async def revived(self) -> LoadedPair:
        """The pair with a worker that answers. Raises WorkerLost if that is not the case in `resume_seconds`.

        Its models are those this one had: where their files have changed, nothing can be continued.
        """
        return await self.worker.replicas.revived(self.info)

    @contextmanager
    def ticket(self, total: int) -> Iterator[Ticket]:
        """Around the work of one request, whose jobs cost `total` (see `gate.cost`)."""
        record = current()
        record.pair = self.config.name
        with self.worker.replicas.gate(self.info).ticket(record.client, total) as ticket:
            try:
                yield ticket
            finally:
                record.queued_seconds = max(record.queued_seconds, ticket.waited)

    def routed(self) -> LoadedPair:
        """The pair with the worker that has the least in hand now."""
        return self.worker.replicas.routed(self)

    def in_hand(self) -> AbstractContextManager[None]:
        """Around a job of its worker."""
        return self.worker.replicas.in_hand(self.worker)


class PairWorker:
    """One worker process of a pair through all its lives."""

    def __init__(
        self, replicas: Replicas, number: int, settings: Settings, folder: Path, command: Sequence[str]
    ) -> None:
        self.config = replicas.config
        self.replicas = replicas
        self.replica = str(number)
        self.outstanding = 0
        self.turn = 0
        self.most_deaths = settings.most_deaths
        self.info: PairInfo | None = None
        self._settings = settings
        self._telemetry = replicas.telemetry
        self._folder = folder
        self._number = number
        self._command = command
        self._starts = 0
        self._deaths: deque[float] = deque()
        self._state: State = "starting"
        self._loaded: LoadedPair | None = None
        self._missed = 0
        self._process: LocalWorker | None = None
        self.first_ready = asyncio.Event()

    @property
    def state(self) -> State:
        # A broken connection is known before the end of the process is: until that is sure, nobody is sent there.
        return "lost" if self._loaded is not None and self._loaded.link.lost.is_set() else self._state

    @property
    def answering(self) -> LoadedPair | None:
        """None while the worker is starting or lost."""
        return None if self._loaded is None or self._loaded.link.lost.is_set() else self._loaded

    @property
    def order(self) -> tuple[bool, int, int]:
        """The lower, the sooner it gets a job: whether it missed heartbeats in a row, its jobs, its last turn."""
        return self._missed >= _SILENT_AFTER, self.outstanding, self.turn

    @property
    def _name(self) -> str:
        number = f" {self.replica}" if len(self.replicas.workers) > 1 else ""
        return f"worker{number} of pair {self.config.name}"

    async def run(self) -> None:
        """Keep a worker alive until cancelled. Raises LoadError if the first does not load, CrashLoop later.

        One that dies too often while others of its pair live rests until it has died less often.
        """
        while True:
            code = await self._live()
            if not self.first_ready.is_set():
                self._state = "failed"
                raise self._load_error(code)
            self._state = "lost"
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths[0] < now - _DEATHS_WINDOW:
                self._deaths.popleft()
            logger.error("the %s ended with code %d", self._name, code)
            if len(self._deaths) >= self.most_deaths:
                await self._rest(code)
            self._telemetry.restarts.labels(self.config.name, self.replica).inc()
            await asyncio.sleep(_BACKOFF[min(len(self._deaths), len(_BACKOFF)) - 1])

    async def _rest(self, code: int) -> None:
        self._state = "failed"
        often = f"the {self._name} died {len(self._deaths)} times in {_DEATHS_WINDOW / 60:.0f} minutes"
        if self.replicas.state == "failed":
            raise CrashLoop(f"{often}, last with code {code}: its log tells why")
        pause = self._deaths[0] + _DEATHS_WINDOW - time.monotonic()
        logger.error("%s: it is not started again for %.0f s", often, pause)
        await asyncio.sleep(pause)
        self._state = "lost"

    async def stop(self, grace: float) -> None:
        self._loaded = None
        if self._process is not None:
            await self._process.stop(grace)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def _live(self) -> int:
        """One life: start, wait until ready, watch until it ends."""
        self._starts += 1
        socket = self._folder / f"{self.config.name}.{self.replica}.{self._starts}"
        begin = launch(
            self.config,
            self._number,
            socket,
            self._command,
            grace=self._settings.stop_seconds,
            agents_token=self._settings.agents_token,
            # A cluster that was there comes back, perhaps: that it is away is no death of the worker's.
            patience=self._settings.resume_seconds if self.first_ready.is_set() else 0,
            alone=has_the_machine(self._settings.pairs),
        )
        process = self._process = await LocalWorker.start(
            begin.spec, begin.command, begin.environment, alone=begin.alone
        )
        ended = asyncio.create_task(process.wait())
        link = None
        self._missed = 0
        try:
            address = begin.socket or await self._told(process, ended)
            if address is not None:
                link = Link(address, partial(Meter, self._telemetry, self.config.name), begin.token)
                if await self._becomes_ready(link, ended):
                    await self._watch(link, ended, process)
            return await ended
        finally:
            self._loaded = None
            ended.cancel()
            if link is not None:
                await link.close()
            socket.unlink(missing_ok=True)

    async def _told(self, process: LocalWorker, ended: asyncio.Task[int]) -> str | None:
        """The address that a worker elsewhere tells once it is loaded; None if it ends before."""
        while process.address is None and not ended.done():
            await asyncio.wait({ended}, timeout=_POLL_SECONDS)
        return process.address

    async def _becomes_ready(self, link: Link, ended: asyncio.Task[int]) -> bool:
        while not (await asyncio.wait({ended}, timeout=_POLL_SECONDS))[0]:
            try:
                info = await link.info()
            except WorkerUnavailable:
                continue
            codec = await self.replicas.codec(info, self._settings.limits.text_chars)
            self.info = info
            self._loaded = LoadedPair(self.config, info, codec, link, self)
            self._state = "ready"
            self.first_ready.set()
            for warning in info.warnings:
                logger.warning("pair %s: %s", self.config.name, warning)
            self.replicas.check_alike()
            return True
        return False

    async def _watch(self, link: Link, ended: asyncio.Task[int], process: LocalWorker) -> None:
        """Until the worker ends; kill it when it is silent, or holds jobs without a step, for `step_timeout`."""
        steps, stuck_since = -1, None
        while not await self._ends(ended, link):
            suspected = link.lost.is_set()
            try:
                health = await link.health()
                self._telemetry.active.labels(self.config.name, self.replica).set(health.active)
                if suspected:  # only an answer asked for since then tells that it lives
                    link.lost.clear()
            except WorkerUnavailable:
                health = None
            self._missed = 0 if health is not None else self._missed + 1
            now = time.monotonic()
            if health is not None and (health.steps != steps or not health.active):
                steps, stuck_since = health.steps, None
            elif stuck_since is None:
                stuck_since = now
            elif now - stuck_since >= self._settings.step_timeout:
                logger.error("the %s hangs: it says where, and is killed", self._name)
                await process.dump()
                process.kill()
                await asyncio.wait({ended})

    async def _ends(self, ended: asyncio.Task[int], link: Link) -> bool:
        """Wait for a heartbeat; less if the worker ends, or seems to."""
        lost = asyncio.create_task(link.lost.wait())
        await asyncio.wait({ended, lost}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if link.lost.is_set():
            await asyncio.wait({ended}, timeout=_POLL_SECONDS)
        return ended.done()

    def _load_error(self, code: int) -> OnOffError:
        problem = self._process.problem if self._process is not None else None
        if problem is not None:
            error = from_problem(problem)
            error.detail = f"pair {self.config.name}: {error.detail}"
            return error
        return LoadError(
            f"pair {self.config.name}: the worker ended with code {code} before it was ready; its log tells why"
        )
