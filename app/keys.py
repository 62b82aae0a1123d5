"""API keys: who may ask. Kept and compared as SHA-256 digests."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from app.record import current
from rl_onoff.errors import ConfigurationError, Unauthorized

#: Asked by probes, which have no key; of what is served they tell the pairs' names.
_OPEN = frozenset({("GET", b"/health"), ("GET", b"/ready")})
_KEY = re.compile(r"[\x21-\x7e]{16,256}")


def digest(key: str) -> bytes:
    """Raises ValueError for what is no key."""
    if not _KEY.fullmatch(key):
        raise ValueError("an API key has 16 to 256 printable ASCII characters and no space")
    return hashlib.sha256(key.encode()).digest()


def read(path: Path) -> list[bytes]:
    """The digests of a file's keys, one a line; empty lines and those that begin with # say nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"api_keys_file {path}: {getattr(error, 'strerror', 'is not UTF-8')}") from error
    keys = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = []
    for number, key in keys:
        if key and not key.startswith("#"):
            try:
                found.append(digest(key))
            except ValueError as error:
                raise ConfigurationError(f"api_keys_file {path}, line {number}: {error}") from error
    if not found:
        raise ConfigurationError(f"api_keys_file {path} holds no key")
    return found


def secured(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document that says which routes want a key, for clients made from it."""
    schemes = {"api_key": {"type": "http", "scheme": "bearer"}}
    paths = {
        path: {
            method: {**operation, "security": []} if (method.upper(), path.encode()) in _OPEN else operation
            for method, operation in methods.items()
        }
        for path, methods in document["paths"].items()
    }
    components = {**document["components"], "securitySchemes": schemes}
    return {**document, "paths": paths, "components": components, "security": [{"api_key": []}]}


class Keys:
    """Lets a request in only with `Authorization: Bearer` and one of the keys. With no keys everyone is let in.

    Raises Unauthorized before anything of the request is read. `also_open`: what may be had without, by GET.
    """

    def __init__(self, app: ASGIApp, digests: Iterable[bytes], also_open: Iterable[bytes] = ()) -> None:
        self._app = app
        self._digests = tuple(digests)
        self._open = _OPEN | {("GET", path) for path in also_open}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._digests and scope["type"] == "http" and not self._may_pass(scope):
            raise Unauthorized("this service wants an API key: Authorization: Bearer KEY")
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        # The path as it was sent: what merely decodes or folds to an open one is not it.
        if (scope["method"], scope.get("raw_path")) in self._open:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        presented = hashlib.sha256(key.strip()).digest()
        current().client = presented.hex()
        # Every key is compared, or the time taken would tell which matched.
        return sum([hmac.compare_digest(presented, known) for known in self._digests]) > 0
