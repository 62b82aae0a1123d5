"""How long and how often a call is made again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient, Client, errors
from rl_onoff._calls import get
from rl_onoff._http import AsyncSession, Session, Settings
from rl_onoff._retry import Backoff
from tests.unit.service_double import GENERATED, Answer, Body, Service, problem

REFUSED = httpx.ConnectError("refused")
AWAY = [
    httpx.Response(502, html="<h1>502 Bad Gateway</h1>"),
    httpx.Response(504, text="upstream request timeout"),
    httpx.Response(502, json={"message": "no", "retryable": False}),
]
STARTING = problem(503, "worker-unavailable", retryable=True)
LOST = problem(503, "worker-lost", retryable=True)


class Clock:
    """Time that passes while one waits, and as a request takes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "sleep", made.sleep)
    monkeypatch.setattr(asyncio, "sleep", made.asleep)
    monkeypatch.setattr("rl_onoff._retry.monotonic", lambda: made.now)
    return made


def generate(service: Service, **options: Any) -> str:
    with Client(transport=service.transport, **options) as client:
        return client.generate("Q", model="m").id


def good() -> httpx.Response:
    return httpx.Response(200, json=GENERATED)


@pytest.mark.parametrize("failure", [REFUSED, STARTING, problem(429, "overloaded", retryable=True), *AWAY])
@pytest.mark.parametrize("away", [9.0, 30.0, 45.0])
async def test_a_service_that_is_away_for_a_while_is_waited_for(clock: Clock, failure: Any, away: float) -> None:
    def service() -> Service:
        back = clock.now + away

        def answer(_: httpx.Request) -> httpx.Response:
            if clock.now >= back:
                return good()
            if isinstance(failure, Exception):
                raise failure
            return httpx.Response(failure.status_code, headers=failure.headers, content=failure.content)

        return Service(answer)

    assert generate(service()) == "g1"
    async with AsyncClient(transport=service().transport) as client:
        assert (await client.generate("Q", model="m")).id == "g1"


@pytest.mark.parametrize("seconds", [5.0, 60.0])
async def test_it_is_given_up_when_the_time_is_over(clock: Clock, seconds: float) -> None:
    with pytest.raises(errors.TransportError, match=r"POST http://127\.0\.0\.1:8000/generate: refused") as caught:
        generate(Service(REFUSED), retry_seconds=seconds)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert sum(clock.waits) == pytest.approx(seconds)
    assert max(clock.waits) <= 8.0
    clock.waits.clear()
    async with AsyncClient(transport=Service(STARTING).transport, retry_seconds=seconds) as client:
        with pytest.raises(errors.WorkerUnavailable):
            await client.generate("Q", model="m")
    assert sum(clock.waits) == pytest.approx(seconds)


def test_the_time_attempts_take_counts(clock: Clock) -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 25.0
        raise httpx.ConnectTimeout("slow")

    service = Service(slow)
    with pytest.raises(errors.TransportError):
        generate(service)
    assert 3 <= len(service.requests) <= 4


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), LOST])
def test_what_broke_off_is_sent_again_a_few_times(clock: Clock, failure: Answer) -> None:
    service = Service(failure)
    with pytest.raises(errors.OnOffError):
        generate(service)
    assert len(service.requests) == 3
    service = Service(failure)
    with pytest.raises(errors.OnOffError):
        generate(service, max_retries=1)
    assert len(service.requests) == 2


async def test_an_answer_that_broke_off_is_asked_for_again(clock: Clock) -> None:
    def service() -> Service:
        return Service(lambda _: Body([b'{"id": '], httpx.ReadError("reset")).response("application/json"), good())

    assert generate(service()) == "g1"
    async with AsyncClient(transport=service().transport) as client:
        assert (await client.generate("Q", model="m")).id == "g1"


async def test_a_file_that_broke_off_is_written_anew(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "rows"

    def service() -> Service:
        half = Body([b"half"], httpx.RemoteProtocolError("closed"))
        return Service(lambda _: half.response("application/x"), httpx.Response(200, content=b"whole"))

    settings = Settings("http://h", None, 1.0, 1.0, Backoff())
    assert Session(settings, service().transport).save(get("/x"), path).read_bytes() == b"whole"
    path.unlink()
    assert (await AsyncSession(settings, service().transport).save(get("/x"), path)).read_bytes() == b"whole"
    assert not path.with_name("rows.part").exists()


@pytest.mark.parametrize(
    "answer", [problem(504, "deadline-exceeded", retryable=True), problem(502, "of-a-later-version")]
)
def test_what_the_service_says_itself_of_a_gateway_is_not_a_proxys(clock: Clock, answer: Answer) -> None:
    service = Service(answer)
    with pytest.raises(errors.ServiceError) as caught:
        generate(service)
    assert not isinstance(caught.value, errors.BadGateway)
    assert len(service.requests) == 1


def test_a_worker_that_is_lost_after_long_work_is_waited_for(clock: Clock) -> None:
    def lost(_: httpx.Request) -> httpx.Response:
        clock.now += 500.0
        return LOST

    service = Service(STARTING, lost, *[STARTING] * 5, good())
    assert generate(service) == "g1"
    assert len(service.requests) == 8


def test_retry_after_is_honoured_up_to_the_budget(clock: Clock) -> None:
    busy = problem(429, "overloaded", retryable=True, retry_after=7)
    assert generate(Service(busy, good())) == "g1"
    assert clock.waits == [7.0]
    never = problem(429, "overloaded", retryable=True, retry_after=3600)
    with pytest.raises(errors.Overloaded) as caught:
        generate(Service(never, good()))
    assert caught.value.retry_after == 3600
    assert clock.waits == [7.0]


def test_the_budget_is_for_all_waits_together(clock: Clock) -> None:
    busy = problem(429, "overloaded", retryable=True, retry_after=25)
    with pytest.raises(errors.Overloaded):
        generate(Service(busy))
    assert clock.waits == [25.0, 25.0]


def test_waits_double_up_to_the_longest(clock: Clock) -> None:
    with pytest.raises(errors.TransportError):
        generate(Service(REFUSED), retry_seconds=1000.0)
    bounds = [0.5, 1, 2, 4, 8, 8, 8, 8, 8]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(clock.waits, bounds, strict=False))


@pytest.mark.parametrize("options", [{"max_retries": 0}, {"retry_seconds": 0.0}])
def test_retries_can_be_turned_off(clock: Clock, options: dict[str, Any]) -> None:
    for failure in (REFUSED, STARTING):
        service = Service(failure)
        with pytest.raises(errors.OnOffError):
            generate(service, **options)
        assert len(service.requests) == 1
