"""Event streams and what they are made of, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest
from starlette.types import Message

from app.config import Settings
from app.middleware import Boundary
from app.record import Record
from app.record import begin as begin_record
from app.responses import StreamedResponse
from app.services.drain import Drain
from app.services.events import Event
from app.services.interleave import interleave
from app.sse import EventStream, begin
from rl_onoff.errors import DeadlineExceeded, ShuttingDown, WorkerLost
from rl_onoff.schemas import HealthResponse, Response

SCOPE: dict[str, Any] = {"type": "http", "path": "/p", "state": {"request_id": "r"}}


class Client:
    """The other end of an ASGI response; leaves after `patience` chunks if given, or never reads."""

    def __init__(self, *, patience: int | None = None, reads: bool = True) -> None:
        self.sent: list[Message] = []
        self._patience = patience
        self._reads = reads
        self._gone = asyncio.Event()

    async def send(self, message: Message) -> None:
        if not self._reads and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        self.sent.append(message)
        if self._patience is not None and len(self.sent) > self._patience:
            self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    @property
    def events(self) -> list[str]:
        body = b"".join(message.get("body", b"") for message in self.sent).decode()
        return [part.splitlines()[0] for part in body.split("\n\n") if part]

    @property
    def ended(self) -> bool:
        return not self.sent[-1].get("more_body", True)


class Source:
    """Tokens, then what it was told to do; `closed` once it was."""

    def __init__(self, tokens: int, end: Exception | str | None = "done") -> None:
        self._tokens = tokens
        self._end = end
        self.closed = False

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            for index in range(self._tokens):
                await asyncio.sleep(0)
                yield Event("token", HealthResponse(), index)
            if isinstance(self._end, Exception):
                raise self._end
            if self._end == "hang":
                await asyncio.Event().wait()
            if self._end == "done":
                yield Event("done", HealthResponse())
        finally:
            self.closed = True


async def send(source: Source, client: Client, drain: Drain | None = None, **settings: Any) -> None:
    stream = EventStream(source.events(), settings=Settings(**settings), drain=drain or Drain())
    await stream(SCOPE, client.receive, client.send)


@pytest.mark.parametrize(
    ("end", "kind"),
    [(WorkerLost("gone"), "worker-lost"), (ValueError("secret"), "internal-error"), (None, "internal-error")],
)
async def test_every_broken_source_ends_in_one_error(end: Exception | None, kind: str) -> None:
    client, source = Client(), Source(2, end)
    await send(source, client)
    assert client.events == ["event: token"] * 2 + ["event: error"]
    problem = json.loads(client.sent[-2]["body"].decode().partition("data: ")[2])
    assert problem["type"].endswith(kind)
    assert (problem["tokens_emitted"], problem["request_id"], problem["instance"]) == (2, "r", "/p")
    assert "secret" not in str(problem)
    assert client.ended
    assert source.closed


async def test_a_whole_source_ends_in_done() -> None:
    client, source = Client(), Source(3)
    await send(source, client)
    assert client.events == ["event: token"] * 3 + ["event: done"]
    assert client.ended


async def test_a_client_that_leaves_closes_the_source() -> None:
    client, source = Client(patience=2), Source(2, "hang")
    await asyncio.wait_for(send(source, client), 1)
    assert source.closed
    assert not client.ended


@pytest.mark.parametrize(("end", "error"), [("hang", "client-gone"), ("done", None)])
async def test_a_client_that_closes_after_the_last_event_has_not_left(end: str, error: str | None) -> None:
    record = Record()
    begin_record(record)
    client = Client(patience=3 + (end == "done"))  # the head, three tokens, done
    await asyncio.wait_for(send(Source(3, end), client), 1)
    assert record.error == error


@pytest.mark.parametrize("patience", [1, 2, 3])
async def test_a_client_that_closes_after_the_last_byte_has_not_left(patience: int) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        for _ in range(2):
            yield b"half"
            await asyncio.sleep(0.01)

    record = Record()
    begin_record(record)
    client = Client(patience=patience)
    answer = StreamedResponse(parts(), 8, "application/x", Drain())
    await asyncio.wait_for(answer(SCOPE, client.receive, client.send), 1)
    assert record.error == ("client-gone" if patience == 1 else None)


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    client, source = Client(reads=False), Source(2, "hang")
    stream = EventStream(source.events(), settings=Settings(), drain=Drain())
    boundary = Boundary(stream, send_seconds=0.05)
    await asyncio.wait_for(boundary({**SCOPE, "headers": []}, client.receive, client.send), 1)
    assert source.closed
    assert not client.ended


async def test_an_expired_drain_ends_streams_with_an_error() -> None:
    client, source, drain = Client(), Source(1, "hang"), Drain()
    with drain.admit():
        sending = asyncio.create_task(send(source, client, drain))
        await asyncio.sleep(0.01)
        finishing = asyncio.create_task(drain.finish(0.01))
        await asyncio.wait_for(sending, 1)
    await finishing
    assert client.events == ["event: token", "event: error"]
    assert client.ended
    with pytest.raises(ShuttingDown), drain.admit():
        pass


async def test_pings_while_nothing_comes() -> None:
    client = Client(patience=3)
    await asyncio.wait_for(send(Source(0, "hang"), client, ping_seconds=0.01), 1)
    assert client.events == [": ping"] * 3


async def test_begin_raises_what_fails_first_and_else_changes_nothing() -> None:
    broken = Source(0, WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await begin(broken.events(), 1)
    assert broken.closed
    slow = Source(0, "hang")
    stream = await begin(slow.events(), 0.01)
    await stream.aclose()
    whole = [event.name async for event in await begin(Source(2).events(), 1)]
    assert whole == ["token", "token", "done"]


async def count(upto: int, running: list[int]) -> AsyncGenerator[int, None]:
    running.append(upto)
    try:
        for number in range(upto):
            await asyncio.sleep(0)
            assert len(running) <= 2
            yield number
        if upto == 7:
            raise WorkerLost("seven")
    finally:
        running.remove(upto)


async def test_interleaving_yields_everything_a_few_at_a_time() -> None:
    running: list[int] = []
    sources = [partial(count, upto, running) for upto in (3, 200, 0, 5)]
    found = [number async for number in interleave(sources, at_once=2)]
    assert sorted(found) == sorted([*range(3), *range(200), *range(5)])
    assert not running


async def test_one_failure_ends_all() -> None:
    running: list[int] = []
    with pytest.raises(WorkerLost):
        async for _ in interleave([partial(count, 100000, running), partial(count, 7, running)], at_once=2):
            pass
    assert not running


async def test_closing_ends_all() -> None:
    running: list[int] = []
    merged = interleave([partial(count, 100000, running)] * 2, at_once=2)
    await anext(merged)
    await merged.aclose()
    assert not running


class Long(Response):
    values: list[int]


async def last(seconds: float | None, ping_seconds: float) -> tuple[Client, int]:
    """What a client gets whose stream ends with a long event, and how many turns others had meanwhile."""
    turns = 0

    async def source() -> AsyncGenerator[Event, None]:
        yield Event("token", HealthResponse(), 0)
        yield Event("done", Long(values=[5] * 3_000_000))

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    begin_record(Record(begun=asyncio.get_running_loop().time(), seconds=seconds))
    client, watching = Client(), asyncio.create_task(others())
    stream = EventStream(source(), settings=Settings(ping_seconds=ping_seconds), drain=Drain())
    try:
        await stream(SCOPE, client.receive, client.send)
    finally:
        watching.cancel()
    return client, turns


async def test_a_long_event_leaves_others_their_turns_and_stays_whole() -> None:
    client, turns = await last(None, 0.001)
    assert turns > 1000
    text = b"".join(message.get("body", b"") for message in client.sent).decode()
    done = next(part for part in text.split("\n\n") if part.startswith("event: done"))
    assert len(json.loads(done.partition("data: ")[2])["values"]) == 3_000_000
    assert client.ended


async def test_a_long_event_that_is_too_late_is_no_end() -> None:
    with pytest.raises(DeadlineExceeded):  # the server cuts the connection
        await last(0.02, 15)
