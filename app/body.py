"""Strict reading of JSON bodies: what the standard parser lets through is refused here, by name.

FastAPI would read the body itself, with `json.loads` and without a word on NaN, depth or lone surrogates.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from rl_onoff.errors import InvalidField, MalformedRequest, PayloadTooLarge, UnsupportedMediaType

_MAX_DEPTH = 32
_MAX_KEYS = 1024
#: Two million ids are validated in a tenth of a second, for which all other requests wait.
_MAX_VALUES = 1 << 21
#: Longer bodies are parsed beside the event loop.
_INLINE_BYTES = 64 << 10


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_parsed"):
            body = await self.body()
            self._parsed = parse(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(parse, body)
        return self._parsed


class StrictRoute(APIRoute):
    """A route whose JSON body, if it takes one, is parsed strictly before FastAPI sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            if takes_body:
                _check_headers(request)
                request = StrictRequest(request.scope, request.receive)
                await request.json()
            return await handler(request)

        return strict


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises MalformedRequest, PayloadTooLarge, or InvalidField for text no encoding can hold.
    """
    if body.count(b",") >= _MAX_VALUES:
        raise PayloadTooLarge(
            f"the body holds {_MAX_VALUES} commas, more values than one request may", limit=_MAX_VALUES
        )
    try:
        # The parser never lets another thread run but where it calls Python: `_integer` does nothing else.
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=int if len(body) <= _INLINE_BYTES else _integer,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise MalformedRequest(f"the body is nested deeper than {_MAX_DEPTH} levels") from None
    except ValueError:  # an integer of thousands of digits
        raise MalformedRequest("the body holds a number no computer should be asked for") from None
    if not isinstance(value, dict):
        raise MalformedRequest("the body must be a JSON object")
    _check(value)
    return value


def _integer(digits: str) -> int:
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedRequest("an object in the body has the same key twice")
    if len(found) > _MAX_KEYS:
        raise MalformedRequest(f"an object in the body has more than {_MAX_KEYS} keys")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"the body is not JSON: it holds {name}")


def _check(value: dict[str, Any]) -> None:
    """Depth and encodable text, level by level."""
    level: list[tuple[str, Any]] = [("", value)]
    for _ in range(_MAX_DEPTH):
        level = [child for path, parent in level for child in _children(path, parent)]
        if not level:
            return
    raise MalformedRequest(f"the body is nested deeper than {_MAX_DEPTH} levels")


def _children(path: str, parent: Any) -> list[tuple[str, Any]]:
    """The lists and objects in `parent`, after its texts were checked."""
    entries = parent.items() if isinstance(parent, dict) else enumerate(parent)
    found = []
    for key, child in entries:
        if isinstance(child, str):
            _check_text(child, path, key)
        elif isinstance(child, dict | list):
            _check_text(str(key), path, "")
            found.append((f"{path}{key}.", child))
    return found


def _check_text(text: str, path: str, key: str | int) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        field = f"{path}{key}".encode(errors="replace").decode().rstrip(".")
        raise InvalidField(f"a lone surrogate at character {error.start} is no text", field=field) from None


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType("send the body as `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body uncompressed")
