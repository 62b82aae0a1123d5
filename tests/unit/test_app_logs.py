"""The service's log lines, and tracing where its packages are missing."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from fastapi import FastAPI

from app.logs import FIELDS, JsonFormatter, TextFormatter
from app.tracing import Tracing
from rl_onoff.errors import InternalError, MissingDependency

CANARY = "canary-7f3a91e2"


def failed() -> logging.LogRecord:
    try:
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            raise InternalError("the worker's answer could not be read") from error
    except InternalError:
        return logging.LogRecord("rl_onoff", logging.ERROR, "f", 1, "request %s failed", ("r1",), sys.exc_info())


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_exceptions_are_told_without_what_they_quote(formatter: logging.Formatter) -> None:
    line = formatter.format(failed())
    assert "request r1 failed" in line
    assert "builtins.ValueError" in line
    assert "in failed" in line
    assert "rl_onoff.errors.InternalError: the worker's answer could not be read" in line
    assert CANARY not in line


def test_json_is_one_object_a_line() -> None:
    record = failed()
    setattr(record, FIELDS, {"status": 500, "route": "a\nb"})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert {"level": "error", "logger": "rl_onoff", "status": 500, "route": "a\nb"}.items() <= json.loads(line).items()


def test_what_tracing_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rl-onoff\[otel\]'"):
        Tracing(FastAPI())
