"""Errors, retries and broken streams."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient, Client, errors
from rl_onoff._retry import retry_after
from rl_onoff.schemas import GenerateResponse
from tests.unit.service_double import GENERATED, Body, Service, problem


def generate(service: Service, **options: Any) -> GenerateResponse:
    with Client(transport=service.transport, **options) as client:
        return client.generate("Q", model="m")


def good() -> httpx.Response:
    return httpx.Response(200, json=GENERATED)


@pytest.mark.parametrize(
    ("status", "slug", "cls"),
    [
        (401, "unauthorized", errors.Unauthorized),
        (404, "unknown-model", errors.UnknownModel),
        (413, "payload-too-large", errors.PayloadTooLarge),
        (422, "context-exceeded", errors.ContextExceeded),
        (500, "internal-error", errors.InternalError),
        (504, "deadline-exceeded", errors.DeadlineExceeded),
    ],
)
def test_problems_are_raised_as_their_class_at_once(
    status: int, slug: str, cls: type[errors.OnOffError], sleeps: list[float]
) -> None:
    service = Service(problem(status, slug, limit=512))
    with pytest.raises(cls, match=f"it is {slug}") as caught:
        generate(service)
    assert type(caught.value) is cls
    assert (caught.value.request_id, caught.value.extensions) == ("r1", {"limit": 512})
    assert len(service.requests) == 1
    assert sleeps == []


@pytest.mark.parametrize(
    ("response", "cls", "detail"),
    [
        (httpx.Response(502, text="<html>Bad Gateway"), errors.BadGateway, "HTTP 502 Bad Gateway from http://"),
        (httpx.Response(504, json={"type": "x", "status": 1}), errors.BadGateway, "HTTP 504"),
        (httpx.Response(404, json={"detail": "Not Found"}), errors.RequestError, "Not Found"),
        (httpx.Response(422, json={"detail": [{"loc": ["x"]}]}), errors.RequestError, "loc"),
        (httpx.Response(400, json=["what"]), errors.RequestError, "HTTP 400"),
        (httpx.Response(307, headers={"Location": "/x"}), errors.ServiceError, "HTTP 307"),
        (httpx.Response(500, content=b"\xff\xfe{"), errors.ServiceError, "HTTP 500"),
    ],
)
def test_answers_of_something_else(response: httpx.Response, cls: type[errors.OnOffError], detail: str) -> None:
    with pytest.raises(cls) as caught:
        generate(Service(response), max_retries=0)
    assert type(caught.value) is cls
    assert detail in caught.value.detail
    assert caught.value.status == response.status_code


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        httpx.ReadError("reset"),
        problem(429, "overloaded", retryable=True),
        problem(503, "worker-unavailable", retryable=True),
        httpx.Response(503, text="proxy"),
    ],
)
async def test_what_has_no_answer_yet_is_tried_again(first: Any, sleeps: list[float]) -> None:
    service = Service(first, first, good())
    assert generate(service).id == "g1"
    assert len(service.requests) == 3
    assert 0.25 <= sleeps[0] <= 0.5 <= sleeps[1] <= 1.0
    service = Service(first, good())
    async with AsyncClient(transport=service.transport) as client:
        assert (await client.generate("Q", model="m")).id == "g1"
    assert len(service.requests) == 2
    assert len(sleeps) == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ReadTimeout("silent"),
        httpx.WriteTimeout("slow"),
        httpx.UnsupportedProtocol("gopher"),
        problem(503, "worker-lost", retryable=False),
        problem(504, "deadline-exceeded", retryable=True),
        problem(500, "internal-error"),
    ],
)
def test_what_may_be_running_or_will_not_help_is_not(answer: Any, sleeps: list[float]) -> None:
    service = Service(answer)
    with pytest.raises(errors.OnOffError):
        generate(service)
    assert len(service.requests) == 1


def test_retry_after_as_a_date_and_as_nonsense() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 <= (retry_after(format_datetime(soon, usegmt=True)) or 0) <= 31
    assert retry_after(format_datetime(soon - timedelta(days=1), usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "soon", "inf", "nan", "-3", "0.5")] == [
        None,
        None,
        None,
        None,
        0,
        0.5,
    ]


def test_ready_is_asked_once_and_not_ready_is_an_answer(sleeps: list[float]) -> None:
    starting = {"ready": False, "pairs": {"demo": "starting"}}
    for response in (problem(503, "worker-unavailable", **starting), httpx.Response(503, json=starting)):
        service = Service(response)
        with Client(transport=service.transport) as client:
            answer = client.ready()
        assert (answer.ready, answer.pairs, len(service.requests)) == (False, {"demo": "starting"}, 1)
    broken = Service(problem(500, "internal-error"))
    with Client(transport=broken.transport) as client, pytest.raises(errors.InternalError):
        client.ready()


async def test_ready_async() -> None:
    async with AsyncClient(transport=Service(problem(503, "worker-unavailable")).transport) as client:
        assert not (await client.ready()).ready
    async with AsyncClient(transport=Service(httpx.ConnectError("no")).transport) as client:
        with pytest.raises(errors.TransportError):
            await client.ready()


async def test_an_answer_cut_short_is_asked_for_again_a_few_times(sleeps: list[float]) -> None:
    def half(_: httpx.Request) -> httpx.Response:
        return Body([b'{"id": '], httpx.ReadError("reset")).response("application/json")

    service = Service(half)
    with pytest.raises(errors.TransportError, match="reset"):
        generate(service)
    async with AsyncClient(transport=service.transport) as client:
        with pytest.raises(errors.TransportError, match="reset"):
            await client.generate("Q", model="m")
    assert len(service.requests) == 6


@pytest.mark.parametrize("key", ["s3cret ", " s3cret", "s3\tcret", "s3cret\r\n"])
def test_a_key_is_not_in_what_is_said(key: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        Client(api_key=key)
    assert "cret" not in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("answer", [httpx.ReadTimeout("silent"), httpx.Response(502, text="proxy")])
def test_a_password_in_the_url_is_sent_and_not_shown(answer: Any) -> None:
    service = Service(answer)
    with pytest.raises(errors.OnOffError, match="http://h:1/generate") as caught:
        generate(service, base_url="http://user:s3cret@h:1", max_retries=0)
    assert "cret" not in str(caught.value)
    assert service.requests[0].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "ftp://h", "http://", "", "/x", "u:s3cret@h:1"])
def test_an_address_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="http") as caught:
        Client(url)
    assert "cret" not in str(caught.value)
    assert not caught.value.retryable


def test_a_password_is_not_in_the_refusal_of_its_url() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        Client("http://user:s3/cret@h:1")
    assert "s3" not in str(caught.value) + str(caught.value.__cause__)


def test_a_key_and_a_password_cannot_both_be_sent() -> None:
    with pytest.raises(errors.ConfigurationError, match="either"):
        Client("http://user:s3cret@h", api_key="k")


def test_an_empty_key_is_none() -> None:
    service = Service(good())
    generate(service, api_key="")
    assert "Authorization" not in service.requests[0].headers
