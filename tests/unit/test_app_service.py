"""Parts of the service that need no worker: bodies, limits, the end, the page of the API."""

from __future__ import annotations

import asyncio
import errno
import math
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from app import main
from app.body import StrictRequest, parse
from app.config import Limits, Settings, pair_settings
from app.docs import docs_page
from app.errors import invalid_field
from app.main import create_app, serve
from app.middleware import Admission
from app.services.drain import Drain
from app.services.nulls import finite, finites
from app.services.supervisor import Supervisor
from rl_onoff.errors import InternalError, MalformedRequest, PayloadTooLarge, ShuttingDown
from rl_onoff.schemas import DivergenceRequest, GenerateRequest

SCOPE: dict[str, Any] = {"type": "http", "path": "/generate", "headers": []}


async def test_a_large_body_is_read_beside_the_event_loop() -> None:
    body = b'{"prompt_ids": [' + b"1234567," * 1_000_000 + b"1]}"
    blocked = 0.0

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def watch() -> None:
        nonlocal blocked
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            blocked = max(blocked, time.perf_counter() - begun)

    watching = asyncio.create_task(watch())
    parsed = await StrictRequest(SCOPE, receive).json()
    watching.cancel()
    assert len(parsed["prompt_ids"]) == 1_000_001
    assert blocked < 0.1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"a": [' + b"1," * (1 << 21) + b"1]}", PayloadTooLarge),
        (b"{" + b",".join(b'"%d":1' % i for i in range(2000)) + b"}", MalformedRequest),
        (b'{"a": 1, "a": 1}', MalformedRequest),
    ],
)
def test_bodies_that_would_cost_too_much_or_mean_two_things(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(body)


@pytest.mark.parametrize(
    "body", [{"items": [5] * 250_000}, {"items": [5] * 60_000}, {"items": [{"prompt_ids": ["x"] * 60_000}]}]
)
def test_many_wrong_entries_are_one_finding(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        DivergenceRequest.model_validate(body)
    assert caught.value.error_count() < 4
    assert invalid_field([{**e, "loc": ("body", *e["loc"])} for e in caught.value.errors()], body).extensions["errors"]


def test_lists_have_bounds() -> None:
    with pytest.raises(ValidationError, match="at most 256"):
        GenerateRequest.model_validate({"model": "m", "prompt": "a", "sampling": {"stop": ["a"] * 257}})
    with pytest.raises(ValidationError, match="at most 1048576"):
        GenerateRequest.model_validate({"model": "m", "prompt_ids": [1] * ((1 << 20) + 1)})


async def test_a_body_that_does_not_come_ends_with_the_drain() -> None:
    drain = Drain()

    async def never() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()

    async def send(message: Message) -> None:
        pass

    reading = asyncio.create_task(Admission(app, Limits(), drain)(SCOPE, never, send))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    drain.expired.set()
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(reading, 1)


def test_no_answer_hides_a_nan() -> None:
    assert (finite(1.5), finite(math.inf), finites([-math.inf, 0.0])) == (1.5, None, [None, 0.0])
    for nan in (lambda: finite(math.nan), lambda: finites([1.0, math.nan])):
        with pytest.raises(InternalError):
            nan()


async def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    supervisor = Supervisor(Settings(), command=("sleep", "9"))
    await supervisor.start()
    try:
        assert supervisor._folder is not None
        assert len(str(supervisor._folder)) < 30
        assert not list(deep.iterdir())
    finally:
        await supervisor.stop(0)
    assert not supervisor._folder.exists()


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "t").write_text("{}")
    return str(tmp_path / "t"), str(tmp_path / "t")


def test_a_start_that_fails_is_one_line(
    tables: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert serve(pair_settings(*tables, backend="table", port=0)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rl-onoff: no folder for the workers' sockets")


def test_a_server_that_cannot_start_is_an_error(
    tables: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def startup(self: Any, sockets: Any = None) -> None:
        raise OSError("no more descriptors")

    monkeypatch.setattr(main.Server, "startup", startup)
    assert serve(pair_settings(*tables, backend="table", port=0)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "rl-onoff: the service cannot go on: no more descriptors"


def test_a_port_that_can_be_bound_but_not_listened_on_is_one_line(
    tables: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listen(self: socket.socket, backlog: int = 0) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket.socket, "listen", listen)
    assert serve(pair_settings(*tables, backend="table", port=0)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rl-onoff: cannot listen on 127.0.0.1 port 0 (Address already in use)")


def test_the_page_of_the_api_needs_nothing_from_elsewhere() -> None:
    html = docs_page(create_app(Settings()).openapi())
    assert not re.search(r"https?://|<script|<link|src=", html)
    for shown in ("POST /switch-generate", "min_dwell", "default: `on`", "at most 1048576", "/openapi.json"):
        assert shown in html
    links = set(re.findall(r'href="#([^"]+)"', html))
    assert links <= set(re.findall(r'id="([^"]+)"', html))
    assert {"429", "504"} <= create_app(Settings()).openapi()["paths"]["/generate"]["post"]["responses"].keys()
