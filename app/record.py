"""What is known of a request while it is answered: who asks, until when, and what it cost. Never a text of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from rl_onoff.errors import DeadlineExceeded


@dataclass(slots=True)
class Record:
    """One request's. Written by whatever handles it; read for the log and the metrics when it has ended.

    `client` is a digest, of the API key or else of the peer's address. `seconds` is what the request has to be answered
    in, counted from `begun`, the event loop's time.
    """

    client: str = ""
    begun: float = 0.0
    seconds: float | None = None
    request_id: str = ""
    pair: str = ""
    tokens: int = 0  # generated
    rows: int = 0  # positions scored, or had from the cache
    queued_seconds: float = 0.0  # the longest that one of its jobs waited for its turn
    #: The slug of the error it ended with, if any; of those that came after the status was out, too.
    error: str | None = None
    #: Told `begun` whenever a stream has sent a token.
    on_token: Callable[[float], None] = lambda begun: None

    def token_sent(self) -> None:
        self.on_token(self.begun)

    @property
    def left(self) -> float | None:
        """Seconds until the deadline, None without one."""
        if self.seconds is None:
            return None
        return max(0.0, self.begun + self.seconds - asyncio.get_running_loop().time())

    def too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the request was not answered within its {self.seconds:g} s", limit=self.seconds)


def client_of(who: bytes) -> str:
    """A name for a client that tells nothing about it."""
    return hashlib.sha256(who).hexdigest()


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """Of the request this runs for; one that nobody reads where there is none."""
    return _current.get() or Record()


def begin(record: Record) -> None:
    """From here on, in this task and those it starts, `current` is this one."""
    _current.set(record)
