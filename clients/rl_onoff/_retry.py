"""Which failed calls are made again, when, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from secrets import SystemRandom
from time import monotonic
from typing import Final

import httpx

from rl_onoff.errors import BadGateway, OnOffError, OutOfMemory, StreamTruncated, TransportError, WorkerLost

RETRIED_STATUS: Final = {429, 503}
# No connection came to be: the service has not seen the request.
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)
# The connection ended before the answer did. A service that answered 500 may close a pooled connection under the
# next request. Time-outs are not among them: the service may be at work on the request.
_RESET = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)
# Work had begun, and the request itself may be why it ended.
_BROKE_OFF = (WorkerLost, OutOfMemory)

_random = SystemRandom()


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long and how often to ask again; waits double, with jitter, and are never shorter than Retry-After.

    A service that turns the request away (429, 503) or cannot be reached, also by a proxy before it, is asked for
    `retry_seconds`, counted from the first such failure. A request that broke off before its answer was handed on is
    sent `max_retries` times more; 0 turns off every retry.
    """

    max_retries: int = 2
    retry_seconds: float = 60.0
    first: float = 0.5
    longest: float = 8.0


@dataclass(slots=True)
class Retries:
    """The retries of one call."""

    backoff: Backoff
    _turned_away: int = field(default=0, init=False)
    _broke_off: int = field(default=0, init=False)
    _until: float = field(default=math.inf, init=False)

    def wait(self, error: OnOffError) -> float | None:
        """Seconds to wait before the call is made again, None to give up."""
        if self.backoff.max_retries <= 0:
            return None
        if _was_turned_away(error):
            return self._while_time_is_left(error)
        if _has_broken_off(error):
            return self._a_few_times(error)
        return None

    def went_on(self) -> None:
        """What the call was made for has come closer: later failures are counted anew."""
        self._turned_away = self._broke_off = 0

    def _while_time_is_left(self, error: OnOffError) -> float | None:
        if not self._turned_away:
            self._until = monotonic() + self.backoff.retry_seconds
        left = self._until - monotonic()
        asked = error.retry_after or 0.0
        if left <= 0 or asked > left:
            return None
        self._turned_away += 1
        return min(max(self._delay(self._turned_away), asked), left)

    def _a_few_times(self, error: OnOffError) -> float | None:
        asked = error.retry_after or 0.0
        if self._broke_off >= self.backoff.max_retries or asked > self.backoff.retry_seconds:
            return None
        self._broke_off += 1
        self._turned_away = 0  # it was reached: what restarts now has its whole time
        return max(self._delay(self._broke_off), asked)

    def _delay(self, attempt: int) -> float:
        doubled = self.backoff.first * 2.0 ** min(attempt - 1, 30)
        return min(self.backoff.longest, doubled) * _random.uniform(0.5, 1.0)


def _was_turned_away(error: OnOffError) -> bool:
    if isinstance(error, TransportError):
        return isinstance(error.__cause__, _UNREACHED)
    return isinstance(error, BadGateway) or (_is_retried_answer(error) and not isinstance(error, _BROKE_OFF))


def _has_broken_off(error: OnOffError) -> bool:
    if isinstance(error, StreamTruncated):
        return True
    if isinstance(error, TransportError):
        return isinstance(error.__cause__, _RESET)
    return _is_retried_answer(error) and isinstance(error, _BROKE_OFF)


def _is_retried_answer(error: OnOffError) -> bool:
    return error.retryable and error.status in RETRIED_STATUS


def retry_after(value: str | None) -> float | None:
    """The seconds a Retry-After header asks for, as a number or a date; None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
