"""Strict reading of JSON bodies: what the standard parser lets through is refused here, by name.

FastAPI would read the body itself, with `json.loads` and without a word on NaN, depth or lone surrogates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from rl_onoff.errors import InvalidField, MalformedRequest, UnsupportedMediaType

_MAX_DEPTH = 32


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_parsed"):
            self._parsed = parse(await self.body())
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
    """The JSON object in `body`. Raises MalformedRequest, or InvalidField for text no encoding can hold."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
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
