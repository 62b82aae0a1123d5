"""Whose turn it is: what runs at a time, what waits, and what is refused, fairly between clients.

Every job of every request passes the gate of its pair (`services.replay`). It costs tokens x vocabulary: the tokens
that pass through a model, prompt and those still to be written, times V, for each model that computes them. So many
run together as fit the two budgets: the cost, and the sequences that the pair's workers have in flight. The rest waits.

Whoever has been served least so far is next: the Virtual Token Counter of Sheng et al., "Fairness in Serving Large
Language Models" (OSDI 2024), section 4, with the cost above as what is counted. A client that was away is set to what
those who stayed have reached: it can save nothing up, and one with a thousand requests holds no other up for longer
than one job takes. A job that is larger than the budget runs alone.

A request is refused when its client would have more than `queued` waiting: as a whole, by `reserve`, before any of it
runs and anything is sent. The queue is each client's own: a full one is nobody else's trouble. One request that is
larger than a queue is taken if nothing else of its client waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from rl_onoff.errors import Overloaded
from workers.wire import Compare, Generate, Job, Score, SwitchGenerate, SwitchScore

_SHORTEST_RETRY, _LONGEST_RETRY = 1.0, 30.0
#: The budget for waiting, where none is configured, in budgets for running: thousands of requests of the usual size.
QUEUED: Final = 64
#: Remembered before those who left are looked for.
_CLIENTS = 64
#: Jobs at the workers for each sequence they compute: the next is there when one ends.
AHEAD: Final = 2


def cost(job: Job, vocab_size: int) -> int:
    """Tokens x vocabulary, of all models that compute the job."""
    match job:
        case Generate():
            tokens = len(job.ids) + job.max_tokens
        case SwitchGenerate():
            tokens = 2 * (len(job.ids) + job.max_tokens)
        case Score():
            tokens = len(job.ids)
        case SwitchScore():
            tokens = 2 * len(job.ids)
        case Compare():
            tokens = len(job.a_ids) + len(job.b_ids)
    return tokens * vocab_size


@dataclass(eq=False, slots=True)
class _Turn:
    cost: int
    since: float
    come: Callable[[], None]
    running: bool = False


@dataclass(eq=False, slots=True)
class _Client:
    """`served` is its virtual counter; `waiting` the cost of all of it that has no turn yet."""

    served: int = 0
    waiting: int = 0
    queue: deque[_Turn] = field(default_factory=deque)


class Gate:
    """Of one pair. `running` and `queued` are costs, `sequences` a number of jobs; `queued` is each client's."""

    def __init__(
        self,
        *,
        running: int,
        queued: int,
        sequences: int,
        on_refused: Callable[[], None] = lambda: None,
        on_waited: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = running
        self._queue_budget = queued
        self._sequences = sequences
        self._on_refused = on_refused
        self._on_waited = on_waited
        self._clock = clock
        self._clients: dict[str, _Client] = {}
        self._reached = 0  # the counter of whom the last turn was given to: where those who stayed are
        self._ended = 0  # cost that ran to its end, or was given up, since the gate was last idle
        self._busy_since = 0.0
        self._most_clients = _CLIENTS
        self.running = 0  # jobs that have their turn
        self.running_cost = 0
        self.queued = 0  # requests of which something waits
        self.queued_cost = 0

    @contextmanager
    def ticket(self, client: str, total: int) -> Iterator[Ticket]:
        """For one request of `client`, whose jobs cost `total` together: what it did not use in the end is free."""
        ticket = Ticket(self, client, total)
        try:
            yield ticket
        finally:
            ticket.close()

    @property
    def retry_after(self) -> float:
        """Seconds until half of what waits will have run, at the pace since the gate was last idle."""
        elapsed = self._clock() - self._busy_since
        if not self._ended:
            return _SHORTEST_RETRY
        return min(max(self.queued_cost / 2 * elapsed / self._ended, _SHORTEST_RETRY), _LONGEST_RETRY)

    def _accept(self, name: str, total: int) -> None:
        client = self._client(name)
        idle = not self.running and not self.queued
        fits = self.running_cost + self.queued_cost + total <= self._budget
        larger = total > self._queue_budget > 0 and not client.waiting
        if not (idle or fits or larger or client.waiting + total <= self._queue_budget):
            self._forget()
            self._on_refused()
            raise Overloaded("too much of this client is waiting for the pair already", retry_after=self.retry_after)
        if idle:
            self._ended, self._busy_since = 0, self._clock()
        self.queued += 1
        self._wait(client, total)

    def _enter(self, name: str, turn: _Turn) -> None:
        client = self._client(name)
        if not client.queue:
            client.served = max(client.served, self._reached)
        client.queue.append(turn)
        self._give_turns()

    def _leave(self, name: str, turn: _Turn) -> None:
        if turn.running:
            self.running -= 1
            self.running_cost -= turn.cost
            self._ended += turn.cost
        else:
            self._clients[name].queue.remove(turn)
        self._give_turns()

    def _give_turns(self) -> None:
        while (client := self._next()) is not None:
            turn = client.queue[0]
            fits = self.running < self._sequences and self.running_cost + turn.cost <= self._budget
            if self.running and not fits:
                break  # nothing smaller passes it, or it might wait for ever
            client.queue.popleft()
            self._reached = client.served
            client.served += turn.cost
            self.running += 1
            self.running_cost += turn.cost
            turn.running = True
            self._on_waited(self._clock() - turn.since)
            turn.come()
        self._forget()

    def _next(self) -> _Client | None:
        """The client served least of those that wait; the one that came first among equals."""
        waiting = [client for client in self._clients.values() if client.queue]
        return min(waiting, key=lambda client: (client.served, client.queue[0].since), default=None)

    def _client(self, name: str) -> _Client:
        return self._clients.setdefault(name, _Client(served=self._reached))

    def _wait(self, client: _Client, amount: int) -> None:
        client.waiting += amount
        self.queued_cost += amount

    def _forget(self) -> None:
        """Clients that have nothing waiting, and have not had more than those who stayed."""
        if not self.running and not self.queued:
            self._clients.clear()
        elif len(self._clients) > self._most_clients:
            for name, client in list(self._clients.items()):
                if not client.queue and not client.waiting and client.served <= self._reached:
                    del self._clients[name]
            self._most_clients = 2 * len(self._clients) + _CLIENTS


class Ticket:
    """One request's way through a gate: `reserve` once, then a `turn` for each of its jobs, as they come."""

    def __init__(self, gate: Gate, client: str, total: int) -> None:
        self._gate = gate
        self._client = client
        self._total = total
        self._left: int | None = None
        self.waited = 0.0  # seconds, the longest of its jobs

    def reserve(self) -> None:
        """Count as waiting what the request may cost, once. Raises Overloaded where that is too much."""
        if self._left is None:
            if self._total:
                self._gate._accept(self._client, self._total)
            self._left = self._total

    @asynccontextmanager
    async def turn(self, amount: int) -> AsyncGenerator[None, None]:
        """Around one job that costs `amount`, once it may run. Raises Overloaded as `reserve` does."""
        self.reserve()
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def come() -> None:
            self._spend(amount)
            if not granted.done():
                granted.set_result(None)

        turn = _Turn(amount, self._gate._clock(), come)
        self._gate._enter(self._client, turn)
        try:
            if not granted.done():
                await granted
                self.waited = max(self.waited, self._gate._clock() - turn.since)
            yield
        finally:
            self._gate._leave(self._client, turn)

    def close(self) -> None:
        """Nothing more will be asked for."""
        if self._left:
            self._spend(self._left)
            self._gate._give_turns()
        self._left = 0

    def _spend(self, amount: int) -> None:
        if self._left:
            spent = min(amount, self._left)
            self._left -= spent
            self._gate._wait(self._gate._client(self._client), -spent)
            self._gate.queued -= not self._left
