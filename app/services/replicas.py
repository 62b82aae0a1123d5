"""The workers of one pair: each job goes to the one with the least in hand."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from app.config import Limits
from app.pair_config import PairConfig
from app.services.gate import AHEAD, QUEUED, Gate
from app.services.telemetry import Telemetry
from app.services.text import Codec
from rl_onoff.errors import WorkerLost, WorkerUnavailable
from workers.wire import PairInfo

if TYPE_CHECKING:
    from app.services.worker import LoadedPair, PairWorker, State

logger = logging.getLogger("rl_onoff.service")

_POLL_SECONDS = 0.05
#: The state of several workers is the best of any.
_BEST_FIRST: Final[tuple[State, ...]] = ("ready", "lost", "starting", "failed")


class Replicas:
    """One pair behind one name, whichever of its workers answer."""

    def __init__(
        self, config: PairConfig, telemetry: Telemetry, resume_seconds: float, limits: Limits | None = None
    ) -> None:
        self.config = config
        self.workers: Sequence[PairWorker] = ()
        self.telemetry = telemetry
        self._resume_seconds = resume_seconds
        self._limits = limits or Limits()
        self._gate: Gate | None = None
        #: Held by the job that is tried, of those that may be what kills workers.
        self.suspects = asyncio.Lock()
        self._turns = itertools.count(1)
        self._reading = asyncio.Lock()
        self._codec: Codec | None = None
        self._codec_of: PairInfo | None = None

    @property
    def states(self) -> list[State]:
        return [worker.state for worker in self.workers]

    @property
    def state(self) -> State:
        states = self.states
        return next(state for state in _BEST_FIRST if state in states)

    @property
    def info(self) -> PairInfo | None:
        """Of a worker that answers; else of one that did."""
        loaded = self._least_loaded()
        return loaded.info if loaded else next((worker.info for worker in self.workers if worker.info), None)

    def loaded(self) -> LoadedPair:
        """The pair with the worker that has least in hand. Raises WorkerUnavailable while all are starting or lost."""
        loaded = self._least_loaded()
        if loaded is None:
            doing = {"lost": "is being restarted", "failed": "could not be loaded"}.get(self.state, "is starting")
            raise WorkerUnavailable(f"the worker of pair {self.config.name} {doing}", retry_after=1)
        return loaded

    def gate(self, info: PairInfo) -> Gate:
        """One for all its workers; unless configured, what runs at a time is bounded by their sequences alone."""
        if self._gate is None:
            sequences = AHEAD * self.config.sequences * self.config.replicas
            whole = sequences * min(info.a.max_len, info.b.max_len) * 2 * info.a.vocab_size
            running = self._limits.running or whole
            queued = QUEUED * running if self._limits.queued is None else self._limits.queued
            self._gate = Gate(
                running=running,
                queued=queued,
                sequences=sequences,
                on_refused=self.telemetry.refused.labels(self.config.name).inc,
                on_waited=self.telemetry.waited.labels(self.config.name).observe,
            )
            self.telemetry.watch_gate(self.config.name, self._gate)
        return self._gate

    def routed(self, pair: LoadedPair) -> LoadedPair:
        """The same models in the worker that has least in hand; `pair` itself where no other answers."""
        return self._least_loaded(pair.info) or pair

    async def revived(self, info: PairInfo) -> LoadedPair:
        """As `LoadedPair.revived`."""
        deadline = time.monotonic() + self._resume_seconds
        while (loaded := self._least_loaded(info)) is None:
            if self._least_loaded() is not None:
                raise WorkerLost("the worker died, and its models changed before it was started again", retry_after=1)
            if time.monotonic() >= deadline or self.state == "failed":
                raise WorkerLost("the worker died while it held this request", retry_after=1)
            await asyncio.sleep(_POLL_SECONDS)
        self.telemetry.resumed.labels(self.config.name).inc()
        return loaded

    async def codec(self, info: PairInfo, text_chars: int) -> Codec:
        """One for all workers of the pair, which nearly always bring the same tokenizer."""
        text = msgspec.structs.replace(info, noise={}, warnings=[])
        async with self._reading:
            if self._codec is None or text != self._codec_of:
                self._codec = await asyncio.to_thread(Codec, info, text_chars)
                self._codec_of = text
            return self._codec

    def check_alike(self) -> None:
        """Log it where workers have loaded different models: each answer is of one of them, and says which."""
        answering = [pair for worker in self.workers if (pair := worker.answering) is not None]
        if any((pair.info.a, pair.info.b) != (answering[0].info.a, answering[0].info.b) for pair in answering):
            logger.error(
                "the workers of pair %s have loaded different models: their files changed in between, or differ "
                "between machines; restart the service",
                self.config.name,
            )

    @contextmanager
    def in_hand(self, worker: PairWorker) -> Iterator[None]:
        """Count a job among those `worker` has."""
        worker.turn = next(self._turns)
        worker.outstanding += 1
        self._count(worker)
        try:
            yield
        finally:
            worker.outstanding -= 1
            self._count(worker)

    def _count(self, worker: PairWorker) -> None:
        self.telemetry.outstanding.labels(self.config.name, worker.replica).set(worker.outstanding)

    def _least_loaded(self, like: PairInfo | None = None) -> LoadedPair | None:
        """Of those that answer (with the models of `like`); the one that waited longest among equals.

        One that missed heartbeats in a row comes after all that did not: nobody knows yet what ails it.
        """
        found = [pair for worker in self.workers if (pair := worker.answering) is not None]
        if like is not None:
            found = [pair for pair in found if (pair.info.a, pair.info.b) == (like.a, like.b)]
        return min(found, key=lambda pair: pair.worker.order, default=None)
