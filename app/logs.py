"""The service's own log: text or JSON lines on standard error, without anything a request said.

Logging never fails: a line that cannot be written is lost. Exceptions are logged as their type and where they were
raised. Their messages are left out, since they may quote a prompt, but for the project's own, which never do.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

from app.record import current
from rl_onoff.errors import OnOffError

Format = Literal["text", "json"]

#: The attribute of a log record that holds further members of its JSON object.
FIELDS: Final = "fields"

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(message)s")

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 — logging's name
        return _stack(ei[1])


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (RFC 3339), `level`, `logger`, `message`, `request_id` where there is one, and more."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current().request_id:
            line["request_id"] = request_id
        line |= getattr(record, FIELDS, {})
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["exception"] = _stack(record.exc_info[1])
        return json.dumps(line)


def configure(style: Format) -> None:
    """Log to standard error from now on."""
    logging.raiseExceptions = False  # or what cannot be logged would be told of on the same stream
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _stack(error: BaseException | None) -> str:
    """The tracebacks of the error and of what it came from, last first."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.format_tb(error.__traceback__))
        detail = f": {error.detail}" if isinstance(error, OnOffError) else ""
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}{detail}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nfrom\n".join(parts)
