"""Admission: how much of a pair's requests runs at once, how much waits, and whose turn it is.

Work is measured in cells, positions x vocabulary: the entries of the rows that are computed at most. Of clients that
wait, the one that had the least is next (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996, section 2), so a
thousand requests of one do not delay the first of another. The head of the queue is never overtaken by what is smaller.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from rl_onoff.errors import Overloaded

#: Who asks: set where requests come in, the same for all a request does.
asking: Final[ContextVar[str]] = ContextVar("asking", default="")

#: What the mean time that requests run takes over from the newest.
_NEWEST: Final = 0.1
_LONGEST_RETRY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Room:
    """How much a pair has of one kind, running or waiting."""

    requests: int
    cells: int


@dataclass(eq=False, slots=True)
class _Ticket:
    client: str
    cells: int
    start: float  # in virtual time
    turn: asyncio.Future[None]


@dataclass(slots=True)
class _Client:
    waiting: deque[_Ticket] = field(default_factory=deque)
    finish: float = 0.0  # virtual time at which all it asked for so far would be done


class Gate:
    """One pair's. `changed` is called with (running, waiting) requests when they change, `refused` for each refused."""

    def __init__(
        self,
        running: Room,
        waiting: Room,
        changed: Callable[[int, int], None] = lambda *_: None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._most_running = running
        self._most_waiting = waiting
        self._changed = changed
        self._refused = refused
        self._clients: dict[str, _Client] = {}
        self._virtual = 0.0
        self._seconds = 1.0
        self.running = self.running_cells = 0
        self.waiting = self.waiting_cells = 0

    @asynccontextmanager
    async def hold(self, cells: int) -> AsyncGenerator[None, None]:
        """Hold room for a request of so many cells; wait for it in the client's turn.

        A request larger than all the room there is runs alone. Raises Overloaded at once where too many wait.
        """
        if self.waiting or not self._fits(cells):
            await self._turn(cells)
        else:
            self._take(cells)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._seconds += _NEWEST * (loop.time() - began - self._seconds)
            self._give_back(cells)

    def _fits(self, cells: int) -> bool:
        if self.running == 0:
            return True
        most = self._most_running
        return self.running < most.requests and self.running_cells + cells <= most.cells

    async def _turn(self, cells: int) -> None:
        most = self._most_waiting
        if self.waiting >= most.requests or (self.waiting and self.waiting_cells + cells > most.cells):
            self._refused()
            raise Overloaded(
                f"{self.running} requests run and {self.waiting} wait: there is no more room",
                retry_after=self._retry_after(),
                running=self.running,
                waiting=self.waiting,
            )
        name = asking.get()
        client = self._clients.setdefault(name, _Client())
        start = max(self._virtual, client.finish)
        client.finish = start + cells
        ticket = _Ticket(name, cells, start, asyncio.get_running_loop().create_future())
        client.waiting.append(ticket)
        self._count_waiting(+1, cells)
        try:
            await ticket.turn
        except asyncio.CancelledError:
            if ticket in client.waiting:
                client.waiting.remove(ticket)
                self._count_waiting(-1, -cells)
                self._admit()
            else:  # its turn came in the same moment
                self._give_back(cells)
            raise

    def _admit(self) -> None:
        """Give their turn to those there is room for."""
        while self.waiting:
            heads = (client.waiting[0] for client in self._clients.values() if client.waiting)
            ticket = min(heads, key=lambda head: head.start)
            if not self._fits(ticket.cells):
                break
            self._clients[ticket.client].waiting.popleft()
            self._virtual = ticket.start
            self._count_waiting(-1, -ticket.cells)
            self._take(ticket.cells)
            ticket.turn.set_result(None)
        if not self.waiting:  # nobody has a claim on what is to come
            self._clients.clear()
            self._virtual = 0.0

    def _take(self, cells: int) -> None:
        self.running += 1
        self.running_cells += cells
        self._changed(self.running, self.waiting)

    def _give_back(self, cells: int) -> None:
        self.running -= 1
        self.running_cells -= cells
        self._admit()
        self._changed(self.running, self.waiting)

    def _count_waiting(self, requests: int, cells: int) -> None:
        self.waiting += requests
        self.waiting_cells += cells
        self._changed(self.running, self.waiting)

    def _retry_after(self) -> float:
        """Until about as many have ended as run now."""
        rounds = (self.waiting + 1) / max(1, self.running)
        return float(math.ceil(min(_LONGEST_RETRY, max(1.0, self._seconds * rounds))))
