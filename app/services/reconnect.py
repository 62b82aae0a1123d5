"""Streams whose client comes back: each is kept until some time after its connection has ended.

While nobody listens no model works. A client that sends the same body again, with the `Last-Event-ID` it has, gets the
events that follow. What is kept goes on at its last token; a text that is not (the service was restarted, the time is
over) is written again from its seed, the events the client has left out: the same text, only later.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from app.services.events import BEGINNING, Event, Place
from app.services.registry import Registry
from app.services.switch import SwitchRun, prepare
from rl_onoff.errors import UnknownStream
from rl_onoff.schemas import SwitchRequest

#: Streams without a listener that are kept, and tokens of all of them, prompts included (some 200 bytes each); beyond
#: either the oldest is written again if its client comes back.
_MOST = 1024
_MOST_TOKENS = 1 << 21


@dataclass(eq=False, slots=True)
class Stream:
    """One run and its present listener. `superseded` is set when another connection has asked for its events."""

    run: SwitchRun
    place: Place
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    ambiguous: bool = False  # another of the same name ran beside it: nobody can tell which one is meant
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> int:
        """It holds these; their number does not change while nobody listens."""
        return len(self.run.ids) + len(self.run.generation.tokens)


class Streams:
    """The streams that can go on. What has a seed is found by what its request says; the rest by its request's id."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: By what the request says and its id.
        self._running: dict[bytes, list[Stream]] = {}
        self._waiting: dict[bytes, tuple[Stream, asyncio.TimerHandle]] = {}
        self._tokens = 0  # of those that wait

    async def open(
        self, request: SwitchRequest, registry: Registry, *, last_event_id: str, request_id: str, client: str
    ) -> tuple[Stream, AsyncGenerator[Event, None]]:
        """The events of a new stream or, after `last_event_id` (empty: none), of one that goes on.

        `client` tells who asks: nobody goes on with another's stream. Raises InvalidField, and UnknownStream where
        the text can neither be continued nor, without a seed, be written again.
        """
        seeded = request.sampling.seed is not None
        name = _name(request, client, request_id)
        kept_as = _name(request, client) if seeded else name
        if not last_event_id:
            stream = Stream(await prepare(request, registry), BEGINNING)
        else:
            place = Place.after(last_event_id)
            run = await self._continued(name, kept_as)
            if run is None and not seeded:
                raise UnknownStream(
                    f"no stream of this body and X-Request-Id ended in the last {self._seconds:g} s, and without a "
                    "sampling.seed its text cannot be written again"
                )
            stream = Stream(run or await prepare(request, registry), place)
        return stream, self._events(name, kept_as, stream)

    async def _continued(self, name: bytes, kept_as: bytes) -> SwitchRun | None:
        """The run of this name, without its listener; None where there is none."""
        for running in self._running.get(name, []):
            if not running.ambiguous:  # a connection that broke without a word
                running.superseded.set()
                await running.ended.wait()
        stream = self._taken(kept_as)
        return None if stream is None else stream.run

    async def _events(self, name: bytes, kept_as: bytes, stream: Stream) -> AsyncGenerator[Event, None]:
        alike = self._running.setdefault(name, [])
        alike.append(stream)
        if len(alike) > 1:
            for one in alike:
                one.ambiguous = True
        try:
            async with aclosing(stream.run.events(stream.place)) as events:
                async for event in events:
                    yield event
        finally:
            alike.remove(stream)
            if not alike:
                del self._running[name]
            if not stream.ambiguous:
                self._keep(kept_as, stream)
            stream.ended.set()

    def _keep(self, name: bytes, stream: Stream) -> None:
        if not self._seconds:
            return
        self._taken(name)
        while self._waiting and (len(self._waiting) >= _MOST or self._tokens + stream.tokens > _MOST_TOKENS):
            self._taken(next(iter(self._waiting)))
        self._tokens += stream.tokens
        timer = asyncio.get_running_loop().call_later(self._seconds, self._taken, name)
        self._waiting[name] = stream, timer

    def _taken(self, name: bytes) -> Stream | None:
        """The stream that waits under this name, and does so no more."""
        waiting = self._waiting.pop(name, None)
        if waiting is None:
            return None
        stream, timer = waiting
        timer.cancel()
        self._tokens -= stream.tokens
        return stream


def _name(request: SwitchRequest, *more: str) -> bytes:
    parts = [part.encode() for part in (request.model_dump_json(), *more)]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()
