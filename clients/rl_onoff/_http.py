"""Connections: sending a call, retrying it while nothing of an answer was handed on, and errors as exceptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from rl_onoff._calls import EVENTS, Call
from rl_onoff._retry import RETRIED_STATUS, Backoff, Retries, retry_after
from rl_onoff.errors import PROBLEM_PREFIX, BadGateway, ConfigurationError, OnOffError, TransportError, from_problem
from rl_onoff.version import __version__

CONNECT_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 60.0
DEADLINE_HEADER: Final = "X-Request-Timeout"

#: What a reverse proxy answers while the service behind it is away.
_GATEWAY_STATUS: Final = {502, 504}
#: Of a body that goes to a file.
PART_BYTES: Final = 1 << 20

T = TypeVar("T")

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a service; seconds without a byte are tolerated up to `timeout`, in a stream `stream_timeout`."""

    base_url: str = field(repr=False)
    api_key: str | None = field(repr=False)
    timeout: float | None
    stream_timeout: float | None
    backoff: Backoff
    deadline: float | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `httpx.Client` and `httpx.AsyncClient`. Raises ConfigurationError."""
        url = _address(self.base_url)
        headers = {"User-Agent": f"rl-onoff/{__version__}"}
        if self.api_key:
            if url.userinfo:
                raise ConfigurationError("give either an API key or a user and password in the URL: HTTP sends one")
            headers["Authorization"] = f"Bearer {_valid(self.api_key)}"
        if self.deadline is not None:
            headers[DEADLINE_HEADER] = _seconds(self.deadline)
        # A proxy for the outside world is not asked for this machine's own service.
        return {"base_url": url, "headers": headers, "trust_env": url.host not in _LOOPBACK}

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        """The call as a request. A pool that is full is waited for: it is the caller's own concurrency."""
        silence = self.stream_timeout if call.accept == EVENTS else self.timeout
        timeout = httpx.Timeout(connect=CONNECT_SECONDS, read=silence, write=WRITE_SECONDS, pool=None)
        return http.build_request(call.method, call.path, content=call.body, headers=call.headers, timeout=timeout)


def _address(base_url: str) -> httpx.URL:
    """The URL. What may be a password is not in the message of the ConfigurationError."""
    shown = "the URL of the service" if "@" in base_url else repr(base_url)
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{shown} is no URL" + ("" if "@" in base_url else f": {error}")) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(f"{shown} must begin with http:// or https:// and name a host")
    return url


def _valid(api_key: str) -> str:
    """The key, if a header can hold it: a later error of httpx's would quote it."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError("the API key holds characters that a header cannot (a newline at its end?)")
    if api_key != api_key.strip():
        raise ConfigurationError("the API key begins or ends with a space")
    return api_key


def _seconds(deadline: float) -> str:
    if not 1e-3 <= deadline <= 1e9:
        raise ConfigurationError("the deadline must be between a thousandth and a thousand million seconds")
    return f"{deadline:.3f}"


def _shown(url: httpx.URL) -> httpx.URL:
    return url.copy_with(username=None, password=None) if url.userinfo else url


class Session:
    """Calls over `httpx.Client`."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        self._settings = settings
        self._http = httpx.Client(transport=transport, **settings.options())

    def retries(self) -> Retries:
        """Of one call."""
        return Retries(self._settings.backoff)

    def open(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response whose body is still to be read; the caller closes it."""
        return self._retried(lambda: self._attempt(call), retry=retry)

    def send(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response, read whole."""
        return self._retried(lambda: self._whole(call), retry=retry)

    def save(self, call: Call, path: Path) -> Path:
        """A successful response's body in a file, which is there once it is whole."""
        return self._retried(lambda: self._saved(call, path))

    def close(self) -> None:
        self._http.close()

    def _retried(self, attempt: Callable[[], T], *, retry: bool = True) -> T:
        retries = self.retries()
        while True:
            try:
                return attempt()
            except OnOffError as error:
                delay = retries.wait(error) if retry else None
                if delay is None:
                    raise
            time.sleep(delay)

    def _whole(self, call: Call) -> httpx.Response:
        response = self._attempt(call)
        try:
            response.read()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            response.close()
        return response

    def _saved(self, call: Call, path: Path) -> Path:
        response = self._attempt(call)
        unfinished = _unfinished(path)
        try:
            with unfinished.open("wb") as file:
                for part in response.iter_bytes(PART_BYTES):
                    file.write(part)
            unfinished.replace(path)
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            response.close()
            unfinished.unlink(missing_ok=True)
        return path

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

    def retries(self) -> Retries:
        """Of one call."""
        return Retries(self._settings.backoff)

    async def open(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response whose body is still to be read; the caller closes it."""
        return await self._retried(lambda: self._attempt(call), retry=retry)

    async def send(self, call: Call, *, retry: bool = True) -> httpx.Response:
        """A successful response, read whole."""
        return await self._retried(lambda: self._whole(call), retry=retry)

    async def save(self, call: Call, path: Path) -> Path:
        """A successful response's body in a file, which is there once it is whole."""
        return await self._retried(lambda: self._saved(call, path))

    async def close(self) -> None:
        await self._http.aclose()

    async def _retried(self, attempt: Callable[[], Awaitable[T]], *, retry: bool = True) -> T:
        retries = self.retries()
        while True:
            try:
                return await attempt()
            except OnOffError as error:
                delay = retries.wait(error) if retry else None
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _whole(self, call: Call) -> httpx.Response:
        response = await self._attempt(call)
        try:
            await response.aread()
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            await response.aclose()
        return response

    async def _saved(self, call: Call, path: Path) -> Path:
        response = await self._attempt(call)
        unfinished = _unfinished(path)
        try:
            with unfinished.open("wb") as file:
                async for part in response.aiter_bytes(PART_BYTES):
                    await asyncio.to_thread(file.write, part)
            unfinished.replace(path)
        except httpx.RequestError as failure:
            raise transport_error(failure) from failure
        finally:
            await response.aclose()
            unfinished.unlink(missing_ok=True)
        return path

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


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def transport_error(failure: httpx.RequestError) -> TransportError:
    """A failure to reach the service, or to read its answer to the end."""
    request = failure.request
    reason = str(failure) or type(failure).__name__
    return TransportError(f"{request.method} {_shown(request.url)}: {reason}")


def error_of(response: httpx.Response) -> OnOffError:
    """The exception of an unsuccessful response, whoever made it: the service, or a proxy before it."""
    try:
        body = response.json()
    except ValueError:
        body = None
    known = body if isinstance(body, dict) else {}
    problem = {
        "status": response.status_code,
        "detail": f"HTTP {response.status_code} {response.reason_phrase} from {_shown(response.url)}",
        "request_id": response.headers.get("X-Request-Id"),
        "retryable": response.status_code in RETRIED_STATUS,
        **known,
    }
    if response.status_code in _GATEWAY_STATUS and not str(known.get("type")).startswith(PROBLEM_PREFIX):
        problem |= {"type": BadGateway.slug, "status": response.status_code, "retryable": BadGateway.retryable}
    if isinstance(problem["detail"], list | dict):
        problem["detail"] = str(problem["detail"])
    return from_problem(problem, retry_after=retry_after(response.headers.get("Retry-After")))
