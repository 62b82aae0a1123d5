"""Deaths, hangs, vanished clients and shutdowns: every request gets its answer, and no process stays behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running_service import RunningService, alive, events, running, table_pair

ENDLESS = {"prompt": "b", "sampling": {"max_tokens": 190, "seed": 1}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    pair = table_pair(tmp_path, endless=True, delay=0.02)
    settings = {"pairs": [pair], "step_timeout": 1, "drain_seconds": 20, "stop_seconds": 1}
    with running(tmp_path, settings) as started:
        assert started.url
        yield started


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/switch-generate", json={**ENDLESS, **body})


def ready_again(service: RunningService, http: httpx.Client) -> None:
    service.wait_for(lambda: http.get("/ready").status_code == 200, seconds=10)


def test_a_killed_worker_fails_what_it_held_and_comes_back(service: RunningService, http: httpx.Client) -> None:
    undisturbed = post(http, sampling={"max_tokens": 5, "seed": 1}).json()["token_ids"]
    (worker,) = service.workers
    with http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}) as response:
        received = events(response)
        first = next(received)
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        *tokens, (name, _, problem) = [first, *received]
        assert time.monotonic() - killed < 1
    assert name == "error"
    assert problem["type"] == "urn:rl-onoff:problem:worker-lost"
    assert problem["retryable"]
    assert problem["tokens_emitted"] == sum(event == "token" for event, _, _ in tokens)
    ready_again(service, http)
    assert http.get("/health").status_code == 200
    assert service.workers != [worker]
    assert post(http, sampling={"max_tokens": 5, "seed": 1}).json()["token_ids"] == undisturbed


def test_a_killed_worker_answers_plain_requests_with_503(service: RunningService, http: httpx.Client) -> None:
    import threading

    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(post(http)))
    asking.start()
    time.sleep(0.5)
    os.kill(service.workers[0], signal.SIGKILL)
    asking.join(timeout=5)
    (answer,) = answers
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["retryable"]
    ready_again(service, http)


def test_a_hung_worker_is_killed_and_replaced(service: RunningService, http: httpx.Client) -> None:
    (worker,) = service.workers
    os.kill(worker, signal.SIGSTOP)
    answer = post(http)
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("worker-lost")
    assert not alive(worker)
    ready_again(service, http)


def test_a_worker_that_keeps_dying_ends_the_service(service: RunningService) -> None:
    def killed() -> bool:
        for worker in service.workers:
            os.kill(worker, signal.SIGKILL)
        return service.process.poll() is not None

    service.wait_for(killed, seconds=20)
    assert service.exit_code() == 70
    assert "died 6 times" in service.log.read_text().splitlines()[-1]


def test_sigterm_lets_streams_finish_and_refuses_new_requests(service: RunningService, http: httpx.Client) -> None:
    with http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}) as response:
        received = events(response)
        next(received)
        service.terminate()
        with httpx.Client(base_url=service.url) as other:
            service.wait_for(lambda: other.get("/ready").status_code == 503, seconds=1)
            refused = post(other)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:rl-onoff:problem:shutting-down")
            assert other.get("/health").status_code == 200
        *_, (name, _, done) = received
    assert (name, len(done["token_ids"])) == ("done", 190)
    workers = service.workers
    assert service.exit_code() == 0
    assert not any(alive(worker) for worker in workers)


def test_a_second_sigterm_ends_it_at_once(service: RunningService, http: httpx.Client) -> None:
    workers = service.workers
    with http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}) as response:
        received = events(response)
        next(received)
        service.terminate()
        time.sleep(0.3)
        service.terminate()
        asked = time.monotonic()
        *_, (name, _, problem) = received
    assert (name, problem["type"]) == ("error", "urn:rl-onoff:problem:shutting-down")
    assert service.exit_code() == 0
    assert time.monotonic() - asked < 2
    assert not any(alive(worker) for worker in workers)


def test_no_worker_outlives_a_killed_service(service: RunningService) -> None:
    workers = service.workers
    service.process.kill()
    service.wait_for(lambda: not any(alive(worker) for worker in workers), seconds=5)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(tmp_path, {"pairs": [table_pair(tmp_path)], "port": port}) as service:
            assert service.exit_code() == 1
    assert f"port {port}" in service.log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"a": {"path": "nowhere.json"}}, 2, "nowhere.json"),
        ({"colour": "blue"}, 2, "pairs.0.colour"),
        ({"b": {}}, 2, "b needs either a path or an adapter"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tmp_path: Path, change: dict[str, Any], code: int, says: str
) -> None:
    with running(tmp_path, {"pairs": [{**table_pair(tmp_path), **change}]}) as service:
        assert service.exit_code(20) == code
    (line,) = [line for line in service.log.read_text().splitlines() if line.startswith("rl-onoff:")]
    assert says in line
    assert not list(tmp_path.glob("rl-onoff-*"))


def test_strangers_are_not_served(tmp_path: Path) -> None:
    with running(tmp_path, {"pairs": [table_pair(tmp_path)], "host": "0.0.0.0"}) as service:
        assert service.exit_code() == 2
    assert "RL_ONOFF_ALLOW_UNAUTHENTICATED" in service.log.read_text()
