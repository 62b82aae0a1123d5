"""Deadlines, logs and metrics: what is told of requests, and that no text of theirs is."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import Client
from rl_onoff.errors import DeadlineExceeded
from tests.e2e.redis_server import redis_server
from tests.e2e.running_service import _PROGRAM, RunningService, events, running, table_pair

CANARY = "canary-7f3a91e2"
KEY = "key-canary-5be0c4778"
ENDLESS = {"prompt": "b", "sampling": {"max_tokens": 5000, "seed": 1}}
SHORT = {"prompt": "b", "sampling": {"max_tokens": 5, "seed": 1}}


def started(folder: Path, **settings: Any) -> Any:
    pair = table_pair(folder, endless=True, delay=0.01, max_len=100_000)
    return running(folder, {"pairs": [pair], "log_format": "json", "api_keys": [KEY], **settings})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    limits = {"request_seconds": 60}
    with started(tmp_path_factory.mktemp("observed"), limits=limits) as service:
        yield service


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def logged(service: RunningService, request_id: str) -> dict[str, Any]:
    """The access line of a request, of which there is exactly one."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["logger"] == "rl_onoff.access" and line.get("request_id") == request_id]

    service.wait_for(found, seconds=5)
    time.sleep(0.05)
    (line,) = found()
    return line


def metric(http: httpx.Client, name: str) -> float:
    found = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in found)


def idle(service: RunningService, http: httpx.Client) -> None:
    service.wait_for(lambda: metric(http, "rl_onoff_worker_outstanding{") == 0, seconds=5)


@pytest.mark.parametrize("path", ["/switch-generate", "/v1/completions"])
def test_a_deadline_before_the_first_byte(service: RunningService, http: httpx.Client, path: str) -> None:
    body = ENDLESS if path == "/switch-generate" else {"model": "pair", "prompt": "b", "max_tokens": 5000}
    begun = time.monotonic()
    answer = http.post(path, json=body, headers={"X-Request-Timeout": "0.5"})
    assert 0.5 <= time.monotonic() - begun < 3
    assert answer.status_code == 504
    if path == "/switch-generate":
        problem = answer.json()
        assert (problem["type"], problem["limit"]) == ("urn:rl-onoff:problem:deadline-exceeded", 0.5)
    else:
        assert answer.json()["error"]["code"] == "deadline_exceeded"
    idle(service, http)


def test_a_deadline_in_a_stream(service: RunningService, http: httpx.Client) -> None:
    body, headers = {**ENDLESS, "stream": True}, {"X-Request-Timeout": "0.7"}
    with http.stream("POST", "/switch-generate", json=body, headers=headers) as response:
        *before, (name, _, problem) = list(events(response))
    assert (response.status_code, name) == (200, "error")
    assert problem["type"] == "urn:rl-onoff:problem:deadline-exceeded"
    assert problem["tokens_emitted"] == sum(event == "token" for event, _, _ in before) > 0
    idle(service, http)
    line = logged(service, response.headers["X-Request-Id"])
    assert (line["status"], line["error"]) == (200, "deadline-exceeded")


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon", "1e3", "61", ""])
def test_deadlines_that_are_none(http: httpx.Client, given: str) -> None:
    answer = http.post("/switch-generate", json=SHORT, headers={"X-Request-Timeout": given})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "X-Request-Timeout"


def test_the_clients_deadline(service: RunningService) -> None:
    with Client(service.url, api_key=KEY, deadline=0.5) as client:
        with pytest.raises(DeadlineExceeded):
            client.switch_generate("b", max_tokens=5000)
        with pytest.raises(DeadlineExceeded), client.switch_generate("b", max_tokens=5000, stream=True) as stream:
            list(stream)
        assert client.switch_generate("b", max_tokens=2).text


def test_time_in_the_queue_counts(tmp_path: Path) -> None:
    limits = {"running": 1}
    with started(tmp_path, limits=limits, drain_seconds=0) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=service.url, timeout=20, headers=headers) as http:
            with http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}):
                answer = http.post("/switch-generate", json=SHORT, headers={"X-Request-Timeout": "0.5"})
                assert answer.status_code == 504
                assert logged(service, answer.headers["X-Request-Id"])["tokens"] == 0
            service.wait_for(lambda: metric(http, "rl_onoff_admission_running{") == 0, seconds=5)
            assert metric(http, "rl_onoff_admission_queued") == 0


def test_each_request_is_one_line(service: RunningService, http: httpx.Client) -> None:
    answer = http.post("/switch-generate", json=SHORT)
    line = logged(service, answer.headers["X-Request-Id"])
    assert line["method"] == "POST"
    assert (line["route"], line["status"], line["tokens"], line["pair"]) == ("/switch-generate", 200, 5, "pair")
    assert line["seconds"] > 0
    assert re.fullmatch("[0-9a-f]{8}", line["client"])
    assert line["error"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    items = [{"prompt_ids": [0], "solution_ids": [1, 2, 1]}]
    answer = http.post("/divergence", json={"items": items})
    assert logged(service, answer.headers["X-Request-Id"])["rows"] == 3
    answer = http.get(f"/{CANARY}")
    line = logged(service, answer.headers["X-Request-Id"])
    assert (line["route"], line["status"], line["error"]) == ("unmatched", 404, "not-found")
    answer = http.get("/v1/models/base")
    assert logged(service, answer.headers["X-Request-Id"])["route"] == "/v1/models/{model:path}"


def test_who_left_is_logged_too(service: RunningService, http: httpx.Client) -> None:
    headers = {"X-Request-Id": "left-in-the-stream"}
    with http.stream("POST", "/switch-generate", json={**ENDLESS, "stream": True}, headers=headers) as response:
        next(events(response))
    line = logged(service, "left-in-the-stream")
    assert (line["status"], line["error"]) == (200, "client-gone")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/switch-generate", json=ENDLESS, headers={"X-Request-Id": "left-before"}, timeout=0.3)
    line = logged(service, "left-before")
    assert (line["status"], line["error"]) == (499, "client-gone")


def test_who_leaves_with_the_last_byte_has_not_left(service: RunningService, http: httpx.Client) -> None:
    rows = {"model": "base", "items": [{"prompt_ids": [0], "solution_ids": [1, 2, 1]}]}
    for turn in range(5):
        headers = {"X-Request-Id": f"stream-{turn}", "Connection": "close"}
        with http.stream("POST", "/switch-generate", json={**SHORT, "stream": True}, headers=headers) as response:
            next(line for line in response.iter_lines() if line == "event: done")
        assert logged(service, f"stream-{turn}")["error"] is None
        headers = {"X-Request-Id": f"rows-{turn}", "Connection": "close", "Accept": "application/vnd.safetensors"}
        assert http.post("/distributions", json=rows, headers=headers).status_code == 200
        assert logged(service, f"rows-{turn}")["error"] is None


def test_metrics_of_requests(service: RunningService, http: httpx.Client) -> None:
    route = 'route="/switch-generate"'
    names = {
        f'rl_onoff_http_requests_total{{method="POST",{route},status="200"}}': 1,
        f"rl_onoff_http_request_seconds_count{{{route}}}": 1,
        f"rl_onoff_first_token_seconds_count{{{route}}}": 1,
        f"rl_onoff_inter_token_seconds_count{{{route}}}": 4,
    }
    before = {name: metric(http, name) for name in names}
    assert http.post("/switch-generate", json={**SHORT, "stream": True}).status_code == 200
    assert {name: metric(http, name) - before[name] for name in names} == names
    for number in range(20):
        http.get(f"/nowhere/{number}")
    http.request("BREW", "/nowhere")
    page = http.get("/metrics").text
    assert "nowhere" not in page
    assert "BREW" not in page
    assert 'method="other",route="unmatched"' in page


def test_nothing_a_client_said_is_told(tmp_path: Path) -> None:
    """Success, 404, 422, a failing pass, a dead worker, streams: what a client said stays between it and the models."""
    pair = table_pair(tmp_path, endless=True, delay=0.01, max_len=100_000, fail_on="d")
    settings = {"log_format": "json", "api_keys": [KEY]}
    with (
        redis_server(tmp_path / "redis") as redis,
        running(tmp_path, {"pairs": [pair], "cache_url": redis.url, **settings}) as service,
    ):
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=service.url, timeout=20, headers=headers) as http:
            said = {**ENDLESS, "prompt": f"b{CANARY}", "sampling": {"max_tokens": 40, "seed": 1}}
            answers = [
                http.post("/switch-generate", json={**said, "a": CANARY}),
                http.post("/switch-generate", json={**said, "more": CANARY}),
                http.post("/switch-generate", json={**said, "lookahead": CANARY}),
                http.post(
                    "/switch-generate",
                    content=f'{{"prompt": "{CANARY}'.encode(),
                    headers={"Content-Type": "application/json"},
                ),
                http.post("/generate", json={"model": "base", "prompt": f"{CANARY}d", "sampling": {"max_tokens": 2}}),
                http.get(f"/nowhere?q={CANARY}", headers={"X-Request-Id": f"{CANARY} {CANARY}"}),
                http.get("/models", headers={"Authorization": f"Bearer {CANARY}{CANARY}"}),
                http.post("/v1/completions", json={"model": CANARY, "prompt": CANARY}),
            ]
            assert [answer.status_code for answer in answers] == [404, 422, 422, 400, 500, 404, 401, 404]
            with http.stream("POST", "/switch-generate", json={**said, "stream": True}) as response:
                received = events(response)
                told = [next(received)]
                os.kill(service.workers[0], signal.SIGKILL)
                told += list(received)
            assert told[-1][0] == "done"
            assert http.post("/switch-generate", json=said).status_code == 200
            items = [{"prompt": CANARY, "solution": CANARY}]
            assert http.post("/divergence", json={"items": items}).status_code == 200
            assert http.post("/distributions", json={"model": "base", "items": items, "top_k": 2}).status_code == 200
            keys = service.wait_for(redis.stored, seconds=5)
            page = http.get("/metrics").text
        assert b"canary" not in b"".join(keys)
        for text in (service.log.read_text(), page, json.dumps(told[-1]), *(answer.text for answer in answers)):
            assert "canary" not in text


def test_logging_never_fails_a_request(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "models.yaml").write_text(json.dumps({"pairs": [table_pair(tmp_path)], "port": port}))
    environment = os.environ | {"RL_ONOFF_CONFIG": str(tmp_path / "models.yaml"), "TMPDIR": str(tmp_path)}
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen([sys.executable, "-c", _PROGRAM], stderr=full, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            deadline = time.monotonic() + 30
            while True:
                assert time.monotonic() < deadline
                assert process.poll() is None
                try:
                    if http.get("/ready").status_code == 200:
                        break
                except httpx.ConnectError:
                    pass
                time.sleep(0.05)
            assert http.post("/switch-generate", json=SHORT).status_code == 200
            assert http.get("/nowhere").status_code == 404
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
