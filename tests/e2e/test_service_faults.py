"""Deaths, hangs, vanished clients and shutdowns: every request gets its answer, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running_service import RunningService, alive, events, running, table_pair

ENDLESS = {"prompt": "b", "sampling": {"max_tokens": 190, "seed": 1}}


def start(folder: Path, **settings: Any) -> AbstractContextManager[RunningService]:
    pair = table_pair(folder, endless=True, delay=0.01, max_len=100_000)
    return running(folder, {"pairs": [pair], "drain_seconds": 20, "stop_seconds": 1, **settings})


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """For faults it must survive, one after the other."""
    with start(tmp_path_factory.mktemp("survivor"), step_timeout=2) as started:
        yield started


@pytest.fixture(scope="module")
def to_survivor(survivor: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=survivor.url, timeout=20) as client:
        yield client


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    """For faults that end it."""
    with start(tmp_path) as started:
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


def test_a_stream_outlives_its_worker(survivor: RunningService, to_survivor: httpx.Client) -> None:
    ready_again(survivor, to_survivor)
    undisturbed = post(to_survivor).json()
    (worker,) = survivor.workers
    with to_survivor.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}) as response:
        received = events(response)
        before = [next(received) for _ in range(20)]
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.1)
        assert to_survivor.get("/health").status_code == 200
        assert to_survivor.get("/ready").status_code == 503
        *after, (name, _, done) = received
    assert name == "done"
    for field in ("text", "token_ids", "leads", "divergences", "switches", "finish_reason"):
        assert done[field] == undisturbed[field], field
    indices = [event["index"] for kind, _, event in [*before, *after] if kind == "token"]
    assert indices == list(range(190))
    assert survivor.workers != [worker]
    assert 'rl_onoff_resumed_total{pair="pair"}' in to_survivor.get("/metrics").text


def test_a_plain_request_outlives_its_worker(survivor: RunningService, to_survivor: httpx.Client) -> None:
    ready_again(survivor, to_survivor)
    undisturbed = post(to_survivor).json()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(post(to_survivor)))
    asking.start()
    time.sleep(0.5)
    os.kill(survivor.workers[0], signal.SIGKILL)
    asking.join(timeout=20)
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["token_ids"] == undisturbed["token_ids"]
    ready_again(survivor, to_survivor)


def test_who_asks_for_the_tokenizer_is_answered_in_time(survivor: RunningService, to_survivor: httpx.Client) -> None:
    """While the worker starts again: too late for what needs it, and what does not is told."""
    os.kill(survivor.workers[0], signal.SIGKILL)
    survivor.wait_for(lambda: to_survivor.get("/ready").status_code == 503)
    hurried = {"X-Request-Timeout": "0.05"}
    assert to_survivor.post("/tokenize", json={"prompt": "a"}, headers=hurried).status_code == 504
    assert to_survivor.post("/detokenize", json={"tokens": [0]}, headers=hurried).status_code == 504
    assert to_survivor.get("/tokenizer_info", headers=hurried).status_code == 504
    found = to_survivor.get("/v1/models/switch:js>0.1")
    assert (found.status_code, found.json()["id"]) == (200, "switch:js>0.1")
    assert to_survivor.get("/v1/models/switch:js").status_code == 404
    assert to_survivor.get("/ready").status_code == 503  # all that was before its successor came
    ready_again(survivor, to_survivor)


def test_a_hung_worker_is_killed_and_replaced(survivor: RunningService, to_survivor: httpx.Client) -> None:
    ready_again(survivor, to_survivor)
    (worker,) = survivor.workers
    os.kill(worker, signal.SIGSTOP)
    assert post(to_survivor).status_code == 200
    assert not alive(worker)
    ready_again(survivor, to_survivor)


def test_a_worker_that_does_not_come_back_in_time_fails_what_it_held(tmp_path: Path) -> None:
    with (
        start(tmp_path, resume_seconds=0) as service,
        httpx.Client(base_url=service.url, timeout=20) as http,
        http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}) as response,
    ):
        received = events(response)
        first = next(received)
        os.kill(service.workers[0], signal.SIGKILL)
        killed = time.monotonic()
        *tokens, (name, _, problem) = [first, *received]
        assert time.monotonic() - killed < 3
        assert name == "error"
        assert problem["type"] == "urn:rl-onoff:problem:worker-lost"
        assert problem["retryable"]
        assert problem["retry_after"] >= 1
        assert problem["tokens_emitted"] == sum(event == "token" for event, _, _ in tokens)
        refused = post(http)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
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
            service.wait_for(lambda: other.get("/ready").status_code == 503, seconds=3)
            refused = post(other)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:rl-onoff:problem:shutting-down")
            assert other.get("/health").status_code == 200
            assert other.get("/metrics").status_code == 200
        *_, (name, _, done) = received
    assert name == "done", done
    assert len(done["token_ids"]) == 190
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


WIDE_ITEM = {"prompt": "b", "solution": "ab" * 5000}
HALF_SENT = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"


def asking(path: str, accept: str, **body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@contextmanager
def stalled(service: RunningService, request: bytes) -> Iterator[socket.socket]:
    """A client that sends `request` and reads nothing of the answer once it has begun."""
    url = httpx.URL(service.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((url.host, url.port))
        client.sendall(request)
        if request is HALF_SENT:
            time.sleep(0.1)
        else:
            client.recv(1, socket.MSG_PEEK)
        yield client


BINARY = "application/vnd.safetensors"
UNREAD = [
    asking("/distributions", BINARY, model="base", items=[WIDE_ITEM] * 8, top_k=6),
    asking("/distributions", "application/json", model="base", items=[WIDE_ITEM] * 4, top_k=6),
    HALF_SENT,
]


@pytest.mark.parametrize("request_", UNREAD, ids=["pieces", "whole", "half-sent"])
@pytest.mark.parametrize("twice", [True, False])
def test_no_client_holds_up_the_end(tmp_path: Path, request_: bytes, twice: bool) -> None:
    pair = table_pair(tmp_path, max_len=100_000)
    with running(tmp_path, {"pairs": [pair], "drain_seconds": 30 if twice else 0.1}) as service:
        assert service.url
        workers = service.workers
        with stalled(service, request_) as client:
            service.terminate()
            if twice:  # two signals at once would be one
                service.wait_for(lambda: httpx.get(f"{service.url}/ready").status_code == 503, seconds=5)
                service.terminate()
            asked = time.monotonic()
            assert service.exit_code() == 0
            assert time.monotonic() - asked < 6  # 2, where nothing else runs
            if request_ is HALF_SENT:
                assert client.recv(100).startswith(b"HTTP/1.1 503 ")
    assert not any(alive(worker) for worker in workers)
    assert not list(tmp_path.glob("rl-onoff-*"))


def test_who_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, max_len=100_000)
    with running(tmp_path, {"pairs": [pair], "send_seconds": 0.5}) as service:
        with httpx.Client(base_url=service.url) as http:
            request = asking("/distributions", BINARY, model="base", items=[WIDE_ITEM] * 8, top_k=6)
            with stalled(service, request) as client:
                service.wait_for(lambda: cut_off(client), seconds=6)
            assert http.get("/health").status_code == 200
        assert "Traceback" not in service.log.read_text()


def cut_off(client: socket.socket) -> bool:
    """Whether the other end is gone for good: it refuses what is sent."""
    try:
        client.send(b"x")
    except ConnectionError:
        return True
    return False


def test_no_worker_outlives_a_killed_service(service: RunningService) -> None:
    workers = service.workers
    service.process.kill()
    service.wait_for(lambda: not any(alive(worker) for worker in workers), seconds=5)


def working(pid: int) -> int:
    """How often a process was given a processor so far."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("voluntary_ctxt_switches:\t")[2].split()[0])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_stops_the_work(
    survivor: RunningService, to_survivor: httpx.Client, streaming: bool
) -> None:
    """The worker's forward passes sleep 10 ms each: it wakes up about a hundred times a second while it works."""
    ready_again(survivor, to_survivor)
    (worker,) = survivor.workers
    body = json.dumps({"prompt": "b", "sampling": {"max_tokens": 50_000}, "stream": streaming}).encode()
    head = f"POST /switch-generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    address = httpx.URL(survivor.url)

    def passes() -> int:
        before = working(worker)
        time.sleep(0.4)
        return working(worker) - before

    with socket.create_connection((address.host, address.port or 80)) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        survivor.wait_for(lambda: passes() > 15)
    survivor.wait_for(lambda: passes() < 10, seconds=5)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(tmp_path, {"pairs": [table_pair(tmp_path)], "port": port}) as service:
            assert service.exit_code() == 1
    assert f"port {port}" in service.log.read_text().splitlines()[-1]


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    pair = table_pair(tmp_path)
    pair["a"]["path"] = "nowhere.json"
    with running(tmp_path, {"pairs": [pair, table_pair(tmp_path, "other")]}) as service:
        assert service.said() == ["rl-onoff: pair pair: there is no file nowhere.json"]
        assert service.log.read_text().count("\n") == 1
        assert service.exit_code() == 2
    assert not list(tmp_path.glob("rl-onoff-*"))


def test_pairs_do_not_share_their_fate(tmp_path: Path) -> None:
    pairs = [table_pair(tmp_path, "one"), table_pair(tmp_path, "two")]
    with running(tmp_path, {"pairs": pairs}) as service, httpx.Client(base_url=service.url) as http:
        unnamed = post(http)
        assert (unnamed.status_code, unnamed.json()["errors"][0]["field"]) == (422, "a")
        assert "a=one-base, b=one-tuned; a=two-base, b=two-tuned" in unnamed.json()["detail"]
        assert post(http, a="one-base", b="two-tuned").status_code == 422
        os.kill(service.workers[0], signal.SIGKILL)
        lost = service.wait_for(lambda: unready(http), seconds=5)
        (other,) = {"one", "two"} - {lost}
        answer = post(http, a=f"{other}-base", sampling={"max_tokens": 1})
        assert (answer.status_code, answer.json()["b"]) == (200, f"{other}-tuned")
        ready_again(service, http)


def unready(http: httpx.Client) -> str | None:
    """The pair that is not ready, if any."""
    pairs = http.get("/ready").json()["pairs"]
    return next((name for name, state in pairs.items() if state != "ready"), None)


def test_strangers_are_not_served(tmp_path: Path) -> None:
    with running(tmp_path, {"pairs": [table_pair(tmp_path)], "host": "0.0.0.0"}) as service:
        assert service.exit_code() == 2
    assert "RL_ONOFF_ALLOW_UNAUTHENTICATED" in service.log.read_text()
