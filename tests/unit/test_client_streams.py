"""Streams: whole, cut anywhere, broken, refused, left early, and the same from both clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient, Client, errors
from rl_onoff.schemas import GenerateResponse, GenerateToken, Switch, SwitchResponse, SwitchToken
from tests.unit.service_double import GENERATED, SWITCHED, TOKENS, Body, Service, problem, sse, switch_events


async def events(body: Body) -> tuple[list[Any], Any]:
    """The events of both clients, which must be the same, and the exception or result they end with."""
    outcomes: list[tuple[list[Any], Any]] = []
    with Client(transport=Service(lambda _: body.response()).transport, max_retries=0) as client:
        seen: list[Any] = []
        with client.switch_generate("Q", stream=True) as stream:
            try:
                seen.extend(stream)  # keeps what came before an exception
                outcomes.append((seen, stream.result))
            except errors.OnOffError as error:
                outcomes.append((seen, error))
    assert body.closed
    body.closed = False
    async with AsyncClient(transport=Service(lambda _: body.response()).transport, max_retries=0) as client:
        seen = []
        async with await client.switch_generate("Q", stream=True) as stream_:
            try:
                async for event in stream_:
                    seen.append(event)
                outcomes.append((seen, stream_.result))
            except errors.OnOffError as error:
                outcomes.append((seen, error))
    assert body.closed
    (events_, outcome), (async_events, async_outcome) = outcomes
    assert events_ == async_events
    assert str(outcome) == str(async_outcome)
    assert type(outcome) is type(async_outcome)
    return events_, outcome


def chopped(chunks: list[bytes], size: int) -> list[bytes]:
    whole = b"".join(chunks)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_a_stream_however_it_is_cut_into_chunks(size: int) -> None:
    seen, result = await events(Body(chopped(switch_events(), size)))
    assert [type(event) for event in seen] == [SwitchToken, Switch, SwitchToken, SwitchResponse]
    assert "".join(event.text for event in seen if isinstance(event, SwitchToken)) == result.text == "xy\u2028z"
    assert seen[1].to == "b"
    assert seen[-1] is result


async def test_nothing_is_read_after_the_result() -> None:
    body = Body([*switch_events(), sse("token", {"index": 9}), sse("error", {})])
    _, result = await events(body)
    assert result.id == "s1"


async def test_an_error_event_is_raised_as_its_class() -> None:
    lost = errors.WorkerLost("the worker died", tokens_emitted=1).problem()
    seen, error = await events(Body([switch_events()[1], sse("error", lost | {"request_id": "r5"})]))
    assert len(seen) == 1
    assert type(error) is errors.WorkerLost
    assert (error.detail, error.retryable, error.request_id) == ("the worker died", True, "r5")
    assert error.extensions["tokens_emitted"] == 1


@pytest.mark.parametrize(
    ("value", "seconds"), [(3, 3.0), (0.5, 0.5), (None, None), ("3", None), (-1, None), (True, None), (10**400, None)]
)
async def test_an_error_event_says_when_to_ask_again(value: Any, seconds: float | None) -> None:
    lost = errors.WorkerLost("the worker died").problem()
    _, error = await events(Body([sse("error", lost | {"retry_after": value})]))
    assert error.retry_after == seconds
    assert errors.from_problem(lost | {"retry_after": value}, retry_after=9.0).retry_after == 9.0


@pytest.mark.parametrize("keep", range(7))
async def test_a_clean_end_without_a_result_is_a_truncation(keep: int) -> None:
    seen, error = await events(Body(switch_events()[:keep]))
    assert type(error) is errors.StreamTruncated
    assert error.request_id == "r9"
    assert f"after {len(seen)} events" in error.detail


async def test_half_a_terminal_event_is_a_truncation() -> None:
    chunks = switch_events()
    chunks[-1] = chunks[-1][:-1]
    _, error = await events(Body(chunks))
    assert type(error) is errors.StreamTruncated


@pytest.mark.parametrize(
    "failure",
    [httpx.ReadError("reset"), httpx.RemoteProtocolError("incomplete chunked read"), httpx.ReadTimeout("")],
)
async def test_a_connection_that_breaks_is_a_truncation(failure: Exception) -> None:
    seen, error = await events(Body(switch_events()[:3], failure))
    assert len(seen) == 1
    assert type(error) is errors.StreamTruncated
    assert error.__cause__ is failure
    assert (str(failure) or "ReadTimeout") in error.detail


@pytest.mark.parametrize(
    "data", [b"event: done\ndata: {\n\n", b"event: error\ndata: []\n\n", b"event: token\ndata:\n\n"]
)
async def test_an_event_that_is_none(data: bytes) -> None:
    _, error = await events(Body([data]))
    assert type(error) is errors.ServiceError


async def test_an_answer_that_is_no_stream() -> None:
    service = Service(lambda _: Body([json.dumps(SWITCHED).encode()]).response("application/json"))
    with Client(transport=service.transport) as client, pytest.raises(errors.ServiceError, match="no event stream"):
        client.switch_generate("Q", stream=True).until_done()
    async with AsyncClient(transport=service.transport) as client:
        with pytest.raises(errors.ServiceError, match="no event stream"):
            await (await client.switch_generate("Q", stream=True)).until_done()


async def test_a_stream_is_refused_before_it_begins(sleeps: list[float]) -> None:
    service = Service(problem(429, "overloaded", retryable=True), problem(404, "unknown-model"))
    with Client(transport=service.transport) as client, pytest.raises(errors.UnknownModel):
        client.switch_generate("Q", stream=True)
    assert len(service.requests) == 2


async def test_leaving_early_closes_the_connection() -> None:
    body = Body(switch_events())
    with Client(transport=Service(lambda _: body.response()).transport) as client:
        with client.switch_generate("Q", stream=True) as stream:
            next(iter(stream))
        assert body.closed
        body.closed = False
        for _ in client.switch_generate("Q", stream=True):
            break
        assert body.closed
    body = Body(switch_events())
    async with AsyncClient(transport=Service(lambda _: body.response()).transport) as client:
        async with await client.switch_generate("Q", stream=True) as astream:
            async for _ in astream:
                break
        assert body.closed
        assert body.sent < len(body.chunks)


async def test_cancelling_the_reader_closes_the_connection() -> None:
    class Slow(Body):
        async def __aiter__(self) -> Any:
            yield self.chunks[1]
            await asyncio.Event().wait()

    body = Slow(switch_events())
    async with AsyncClient(transport=Service(lambda _: body.response()).transport) as client:

        async def read() -> None:
            async with await client.switch_generate("Q", stream=True) as stream:
                await stream.until_done()

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert body.closed


async def test_results_are_known_at_the_end_and_streams_read_once() -> None:
    body = Body(switch_events())
    with Client(transport=Service(lambda _: body.response()).transport) as client:
        stream = client.switch_generate("Q", stream=True)
        with pytest.raises(RuntimeError, match="read to its end"):
            _ = stream.result
        assert stream.until_done() is stream.result
        assert stream.request_id == "r9"
        with pytest.raises(RuntimeError, match="only once"):
            list(stream)


async def test_generate_streams_too() -> None:
    token = {"prompt_index": 0, "sample": 0, "index": 0, "id": 4, "text": "4"}
    body = Body([sse("token", token), sse("done", GENERATED)])
    service = Service(lambda _: body.response())
    with Client(transport=service.transport) as client:
        kinds = [type(event) for event in client.generate("Q", model="m", stream=True)]
    assert kinds == [GenerateToken, GenerateResponse]
    assert service.sent["stream"] is True
    async with AsyncClient(transport=service.transport) as client:
        assert (await (await client.generate("Q", model="m", stream=True)).until_done()).id == "g1"


TEXT = [
    sse("token", TOKENS[0], 0),
    sse("switch", SWITCHED["switches"][0]).replace(b"event", b"id: switch-1\nevent", 1),
    sse("token", TOKENS[1], 1),
    sse("done", SWITCHED),
]


def resuming(cuts: list[int]) -> tuple[Service, list[httpx.Headers]]:
    """A service whose first streams break off after so many bytes, and that goes on where it is told to."""
    headers: list[httpx.Headers] = []
    left = list(cuts)

    def answer(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers)
        told = {"0": 1, "switch-1": 2, "1": 3}.get(request.headers.get("Last-Event-ID", ""), 0)
        data = b"".join(TEXT[told:])
        if not left:
            return Body([data]).response()
        return Body([data[: left.pop(0)]], httpx.ReadError("reset")).response()

    return Service(answer), headers


@pytest.mark.parametrize("cut", range(0, len(b"".join(TEXT)), 11))
async def test_a_stream_that_breaks_anywhere_goes_on(cut: int, sleeps: list[float]) -> None:
    service, headers = resuming([cut])
    with Client(transport=service.transport) as client, client.switch_generate("Q", stream=True) as stream:
        kinds = [type(event) for event in stream]
    assert kinds == [SwitchToken, Switch, SwitchToken, SwitchResponse]
    assert stream.result.text == SWITCHED["text"]
    assert len(service.requests) == 2
    first, second = (json.loads(request.content) for request in service.requests)
    assert first == second
    assert isinstance(first["sampling"]["seed"], int)
    if "Last-Event-ID" in headers[1]:
        assert headers[1]["X-Request-Id"] == "r9"
    service, _ = resuming([cut, 2])
    async with AsyncClient(transport=service.transport) as client_:
        astream = await client_.switch_generate("Q", stream=True, seed=5)
        assert [type(event) async for event in astream] == kinds
    assert service.sent["sampling"]["seed"] == 5


def test_a_stream_that_keeps_breaking_is_given_up(sleeps: list[float]) -> None:
    service, _ = resuming([3] * 9)
    with Client(transport=service.transport) as client, pytest.raises(errors.StreamTruncated):
        client.switch_generate("Q", stream=True).until_done()
    assert len(service.requests) == 3
    assert len(sleeps) == 2


def test_a_service_that_cannot_go_on_is_found_out(sleeps: list[float]) -> None:
    deaf = Service(lambda _: Body(TEXT[:1], httpx.ReadError("reset")).response())
    with Client(transport=deaf.transport) as client, pytest.raises(errors.ServiceError, match="did not go on"):
        client.switch_generate("Q", stream=True).until_done()
    other = sse("done", {**SWITCHED, "token_ids": [10, 12]})
    answers = iter([Body(TEXT[:3], httpx.ReadError("reset")), Body([other])])
    changed = Service(lambda _: next(answers).response())
    with Client(transport=changed.transport) as client, pytest.raises(errors.ServiceError, match="another text"):
        client.switch_generate("Q", stream=True).until_done()


def test_a_service_that_shuts_down_is_asked_again(sleeps: list[float]) -> None:
    bye = sse("error", errors.ShuttingDown("bye", tokens_emitted=1).problem())
    answers = iter([Body([TEXT[0], bye]), Body(TEXT[1:])])
    service = Service(lambda _: next(answers).response())
    with Client(transport=service.transport) as client:
        assert client.switch_generate("Q", stream=True).until_done().text == SWITCHED["text"]
