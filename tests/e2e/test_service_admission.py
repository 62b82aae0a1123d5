"""Too much at once, and for too long: 429, 504, and nothing left behind. tests/unit/test_app_gate.py has the turns."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import Client
from rl_onoff.errors import DeadlineExceeded
from tests.e2e.running_service import RunningService, events, running, table_pair

RUNNING, WAITING = 4, 6
ENDLESS = {"prompt": "b", "sampling": {"seed": 1, "max_tokens": 50_000}, "policy": {"kind": "always_a"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    document = {
        "pairs": [table_pair(folder, endless=True, delay=0.01, max_len=100_000)],
        "admission": {"running_requests": RUNNING, "waiting_requests": WAITING},
    }
    with running(folder, document) as service:
        assert service.url
        yield service


def gauge(url: str, state: str) -> int:
    found = re.search(rf'rl_onoff_requests{{pair="pair",state="{state}"}} ([0-9.]+)', httpx.get(f"{url}/metrics").text)
    return int(float(found[1])) if found else 0


def body(tokens: int, **more: Any) -> dict[str, Any]:
    return {**ENDLESS, "sampling": {"seed": 1, "max_tokens": tokens}, **more}


async def test_exactly_as_many_as_there_is_room_for_succeed(service: RunningService) -> None:
    """L4 of the list of promises."""
    count = 4 * (RUNNING + WAITING)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:

        async def ask(stream: bool) -> tuple[int, float, httpx.Response]:
            began = time.perf_counter()
            response = await http.post("/switch-generate", json=body(60, stream=stream))
            return response.status_code, time.perf_counter() - began, response

        await http.get("/health")
        answers = await asyncio.gather(*(ask(i % 2 == 0) for i in range(count)))
        assert "rl_onoff_requests_refused_total" in (await http.get("/metrics")).text
    assert sum(status == 200 for status, _, _ in answers) == RUNNING + WAITING
    refused = [(seconds, response) for status, seconds, response in answers if status == 429]
    assert len(refused) == count - RUNNING - WAITING
    for _, response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["type"].endswith(":overloaded")
        assert response.json()["retryable"] is True
    # Forty connections are opened in between: the work of the refusal itself is a small part of this.
    assert sorted(seconds for seconds, _ in refused)[len(refused) // 2] < 1.0
    assert (gauge(service.url, "running"), gauge(service.url, "waiting")) == (0, 0)


def test_who_gives_up_while_he_waits_leaves_his_place(service: RunningService) -> None:
    url = f"{service.url}/switch-generate"
    clients = [httpx.Client(timeout=30) for _ in range(RUNNING)]
    streamed = {**ENDLESS, "stream": True}
    held: list[httpx.Response] = []
    try:
        held += [client.send(client.build_request("POST", url, json=streamed), stream=True) for client in clients]
        for _ in range(WAITING + 1):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body(5), timeout=httpx.Timeout(30, read=0.2))
        service.wait_for(lambda: gauge(service.url, "waiting") == 0)
        assert gauge(service.url, "running") == RUNNING
    finally:
        for response in held:
            response.close()
        for client in clients:
            client.close()
    service.wait_for(lambda: gauge(service.url, "running") == 0)


def test_a_deadline_before_the_first_byte_is_504(service: RunningService) -> None:
    began = time.perf_counter()
    response = httpx.post(
        f"{service.url}/switch-generate", json=ENDLESS, headers={"X-Request-Timeout": "0.4"}, timeout=30
    )
    assert (response.status_code, response.json()["type"]) == (504, "urn:rl-onoff:problem:deadline-exceeded")
    assert 0.4 <= time.perf_counter() - began < 5
    service.wait_for(lambda: gauge(service.url, "running") == 0)
    headers = {"X-Request-Timeout": "0.4"}
    openai = httpx.post(
        f"{service.url}/v1/completions",
        json={"model": "base", "prompt": "b", "max_tokens": 50_000},
        headers=headers,
        timeout=30,
    )
    assert (openai.status_code, openai.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_deadline_in_a_stream_is_its_error(service: RunningService) -> None:
    headers = {"X-Request-Timeout": "0.5"}
    with httpx.stream(
        "POST", f"{service.url}/switch-generate", json={**ENDLESS, "stream": True}, headers=headers, timeout=30
    ) as response:
        assert response.status_code == 200
        found = list(events(response))
    assert [name for name, _, _ in found if name in ("done", "error")] == ["error"]
    assert found[-1][2]["type"].endswith(":deadline-exceeded")
    assert found[-1][2]["tokens_emitted"] == sum(name == "token" for name, _, _ in found) > 0
    service.wait_for(lambda: gauge(service.url, "running") == 0)


def test_the_sdk_sends_its_deadline(service: RunningService) -> None:
    with Client(service.url, deadline=0.3) as client, pytest.raises(DeadlineExceeded):
        client.switch_generate(**{**ENDLESS, "sampling": {"max_tokens": 50_000}})


@pytest.mark.parametrize("given", ["0", "-1", "nan", "1e3", "soon", "", "9" * 20])
def test_what_is_no_deadline_is_refused(service: RunningService, given: str) -> None:
    response = httpx.post(
        f"{service.url}/switch-generate", json=body(1), headers={"X-Request-Timeout": given}, timeout=30
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "X-Request-Timeout"


def test_the_operator_sets_the_longest(tmp_path: Path) -> None:
    document = {"pairs": [table_pair(tmp_path, endless=True, delay=0.01, max_len=100_000)], "request_seconds": 0.3}
    with running(tmp_path, document) as service:
        response = httpx.post(
            f"{service.url}/switch-generate", json=ENDLESS, headers={"X-Request-Timeout": "100"}, timeout=30
        )
        assert response.status_code == 504
