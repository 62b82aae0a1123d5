"""Connections: sending a call, retrying it while no answer has begun, and errors as exceptions."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from secrets import SystemRandom
from typing import Any, Final

import httpx

from rl_onoff._calls import EVENTS, Call
from rl_onoff.errors import ConfigurationError, OnOffError, TransportError, from_problem
from rl_onoff.version import __version__

CONNECT_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 60.0

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_RETRIED_STATUS = {429, 503}
# Failures before any answer. A service that answered 500 may close a pooled connection under the next request, hence
# the resets. Time-outs are not among them: the service may be at work on the request.
_RETRIED_FAILURES = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.RemoteProtocolError,
    httpx.WriteError,
)
_random = SystemRandom()


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how long to wait: doubling with jitter, never less than Retry-After, `budget` seconds in all."""

    max_retries: int = 2
    first: float = 0.5
    longest: float = 8.0
    budget: float = 60.0

    def delay(self, attempt: int, error: OnOffError, waited: float) -> float | None:
        """Seconds to wait before the next attempt (`attempt` is 0 after the first), None to give up."""
        cause = error.__cause__
        again = (
            isinstance(cause, _RETRIED_FAILURES)
            if isinstance(error, TransportError)
            else error.retryable and error.status in _RETRIED_STATUS
        )
        if not again or attempt >= self.max_retries:
            return None
        seconds = min(self.longest, self.first * 2**attempt) * _random.uniform(0.5, 1.0)
        seconds = max(seconds, error.retry_after or 0.0)
        return seconds if waited + seconds <= self.budget else None


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a service; seconds without a byte are tolerated up to `timeout`, in a stream `stream_timeout`."""

    base_url: str
    api_key: str | None
    timeout: float | None
    stream_timeout: float | None
    backoff: Backoff

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `httpx.Client` and `httpx.AsyncClient`. Raises ConfigurationError."""
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{self.base_url!r} is no URL: {error}") from error
        headers = {"User-Agent": f"rl-onoff/{__version__}"}
        if self.api_key is not None:
            # A later error of httpx's would quote the key.
            if not (self.api_key.isascii() and self.api_key.isprintable()):
                raise ConfigurationError("the API key holds characters that a header cannot (a newline at its end?)")
            headers["Authorization"] = f"Bearer {self.api_key}"
        # A proxy for the outside world is not asked for this machine's own service.
        return {"base_url": url, "headers": headers, "trust_env": url.host not in _LOOPBACK}

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        """The call as a request. A pool that is full is waited for: it is the caller's own concurrency."""
        silence = self.stream_timeout if call.accept == EVENTS else self.timeout
        timeout = httpx.Timeout(connect=CONNECT_SECONDS, read=silence, write=WRITE_SECONDS, pool=None)
        return http.build_request(call.method, call.path, content=call.body, headers=call.headers, timeout=timeout)


class Session:
    """Calls over `httpx.Client`."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        self._settings = settings
        self._http = httpx.Client(transport=transport, **settings.options())

    def open(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response whose body is still to be read; the caller closes it."""
        waited = 0.0
        for attempt in itertools.count():
            try:
                return self._attempt(call)
            except OnOffError as error:
                delay = self._settings.backoff.delay(attempt, error, waited) if retry else None
                if delay is None:
                    raise
            time.sleep(delay)
            waited += delay
        raise AssertionError("unreachable")

    def send(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response, read whole."""
        response = self.open(call, retry=retry)
        try:
            response.read()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            response.close()
        return response

    def close(self) -> None:
        self._http.close()

    def _attempt(self, call: Call) -> httpx.Response:
        try:
            response = self._http.send(self._settings.request(self._http, call), stream=True)
            if response.is_success:
                return response
            try:
                response.read()
            finally:
                response.close()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        raise error_of(response)


class AsyncSession:
    """Calls over `httpx.AsyncClient`."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None) -> None:
        self._settings = settings
        self._http = httpx.AsyncClient(transport=transport, **settings.options())

    async def open(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response whose body is still to be read; the caller closes it."""
        waited = 0.0
        for attempt in itertools.count():
            try:
                return await self._attempt(call)
            except OnOffError as error:
                delay = self._settings.backoff.delay(attempt, error, waited) if retry else None
                if delay is None:
                    raise
            await asyncio.sleep(delay)
            waited += delay
        raise AssertionError("unreachable")

    async def send(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response, read whole."""
        response = await self.open(call, retry=retry)
        try:
            await response.aread()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            await response.aclose()
        return response

    async def close(self) -> None:
        await self._http.aclose()

    async def _attempt(self, call: Call) -> httpx.Response:
        try:
            response = await self._http.send(self._settings.request(self._http, call), stream=True)
            if response.is_success:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        raise error_of(response)


def transport_error(failure: httpx.RequestError) -> TransportError:
    """A failure to reach the service, or to read its answer to the end."""
    request = failure.request
    reason = str(failure) or type(failure).__name__
    return TransportError(f"{request.method} {request.url}: {reason}")


def error_of(response: httpx.Response) -> OnOffError:
    """The exception of an unsuccessful response, whoever made it: the service, or a proxy before it."""
    try:
        body = response.json()
    except ValueError:
        body = None
    known = body if isinstance(body, dict) else {}
    problem = {
        "status": response.status_code,
        "detail": f"HTTP {response.status_code} {response.reason_phrase} from {response.url}",
        "request_id": response.headers.get("X-Request-Id"),
        "retryable": response.status_code in _RETRIED_STATUS,
        **known,
    }
    if isinstance(problem["detail"], list | dict):
        problem["detail"] = str(problem["detail"])
    return from_problem(problem, retry_after=retry_after(response.headers.get("Retry-After")))


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
