"""The cache over HTTP, on a real Redis server: what is asked again is not computed again; no fault of Redis shows."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.redis_server import RedisServer, redis_server
from tests.e2e.running_service import RunningService, running, table_pair

SOLUTION = "abcabdabcaabbdabcabdabcaabbdaacbdabcabdab"  # two blocks and a half
ITEM = {"prompt": "ab", "solution": SOLUTION}
#: Of a request that must not wait for Redis, on a busy machine.
SOON = 1.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def empty(server: RedisServer) -> RedisServer:
    server.client.flushall()
    return server


def service(folder: Path, cache: str | None, **settings: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    more = {} if cache is None else {"cache_url": cache}
    return running(folder, {"pairs": [table_pair(folder, max_len=150)], **more, **settings})


def distributions(service: RunningService, item: dict[str, str] = ITEM, **body: Any) -> dict[str, Any]:
    headers = body.pop("headers", {})
    request = {"model": "base", "items": [item], "top_k": 3, **body}
    response = httpx.post(f"{service.url}/distributions", json=request, headers=headers, timeout=20)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def divergence(service: RunningService, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{service.url}/divergence", json={"items": [ITEM], "measures": ["js"], **body}, timeout=20)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def whole_rows(service: RunningService) -> bytes:
    headers = {"Accept": "application/vnd.safetensors"}
    body = {"model": "base", "items": [ITEM]}
    response = httpx.post(f"{service.url}/distributions", json=body, headers=headers, timeout=20)
    assert response.status_code == 200
    return response.content[8 + int.from_bytes(response.content[:8], "little") :]  # the header holds an id


def metric(service: RunningService, name: str) -> float:
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"rl_onoff_cache_{name}"))


def stored(server: RedisServer, count: int = 1) -> None:
    """Writes come after the answer."""
    deadline = time.monotonic() + 5
    while len(server.stored()) < count:
        assert time.monotonic() < deadline, server.stored()
        time.sleep(0.01)


@pytest.mark.parametrize("embedded", [False, True])
def test_what_was_asked_is_not_computed_again(tmp_path: Path, empty: RedisServer, embedded: bool) -> None:
    with service(tmp_path, None if embedded else empty.url) as started:
        first = distributions(started)
        assert first["cache"] == {"hit_rows": 0, "computed_rows": len(SOLUTION)}
        if not embedded:
            stored(empty, 3)
        second = distributions(started)
        assert second["cache"] == {"hit_rows": len(SOLUTION), "computed_rows": 0}
        assert second["items"] == first["items"]
        fewer = distributions(started, top_k=2)
        assert fewer["cache"]["hit_rows"] == len(SOLUTION)
        fresh = distributions(started, top_k=2, headers={"Cache-Control": "no-store"})
        assert fresh["cache"] == {"hit_rows": 0, "computed_rows": len(SOLUTION)}
        assert fresh["items"] == fewer["items"]
        longer = distributions(started, {**ITEM, "solution": SOLUTION + "aab"})
        assert longer["cache"] == {"hit_rows": 32, "computed_rows": len(SOLUTION) + 3 - 32}
        assert distributions(started, model="tuned")["cache"]["hit_rows"] == 0
        assert distributions(started, temperature=0.5)["cache"]["hit_rows"] == 0

        apart = divergence(started)
        assert apart["cache"]["computed_rows"] == len(SOLUTION)
        again = divergence(started, units="bits")
        assert again["cache"] == {"hit_rows": len(SOLUTION), "computed_rows": 0}
        assert divergence(started)["items"] == apart["items"]
        assert divergence(started)["summary"] == apart["summary"]
        assert divergence(started)["provenance"] == apart["provenance"]
        assert divergence(started, a="tuned", b="base")["cache"]["computed_rows"] >= 0

        assert whole_rows(started) == whole_rows(started)
        assert metric(started, "rows_total") > 0


def test_services_share_one_redis_and_a_new_one_finds_it_warm(tmp_path: Path, empty: RedisServer) -> None:
    with service(tmp_path / "1", empty.url) as first, service(tmp_path / "2", empty.url) as second:
        answer = distributions(first)
        stored(empty, 3)
        assert distributions(second)["cache"]["hit_rows"] == len(SOLUTION)
    with service(tmp_path / "3", empty.url) as third:
        found = distributions(third)
        assert found["cache"]["hit_rows"] == len(SOLUTION)
        assert found["items"] == answer["items"]
    with service(tmp_path / "4", empty.url, cache_namespace="other") as fourth:
        assert distributions(fourth)["cache"]["hit_rows"] == 0


def test_a_retrained_model_of_the_same_name_shares_nothing(tmp_path: Path, empty: RedisServer) -> None:
    with service(tmp_path, empty.url) as started:
        distributions(started)
        stored(empty, 3)
    pair = table_pair(tmp_path, endless=True, max_len=150)
    with running(tmp_path, {"pairs": [pair], "cache_url": empty.url}) as retrained:
        assert distributions(retrained)["cache"]["hit_rows"] == 0


def test_equal_requests_at_the_same_time_are_computed_once(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, max_len=150, delay=0.5)
    with running(tmp_path, {"pairs": [pair]}) as started:
        assert started.url
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: distributions(started), range(6)))
        assert sum(answer["cache"]["computed_rows"] for answer in answers) == len(SOLUTION)
        assert all(answer["items"] == answers[0]["items"] for answer in answers)
        with ThreadPoolExecutor(6) as pool:
            files = list(pool.map(lambda _: whole_rows(started), range(6)))
        assert len(set(files)) == 1
        assert metric(started, 'rows_total{pair="pair",source="model"}') == 2 * len(SOLUTION)


def test_what_is_broken_in_redis_is_computed_again_and_removed(tmp_path: Path, empty: RedisServer) -> None:
    with service(tmp_path, empty.url) as started:
        answer = distributions(started)
        stored(empty, 3)
        good = {key: empty.client.get(key) for key in empty.stored()}
        first, *_ = good
        marker = tmp_path / "executed"

        class Planted:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(marker),)

        for planted in (
            b"",
            b"\x00" * 1000,
            good[first][:-1],
            good[first][:60] + bytes([good[first][60] ^ 1]) + good[first][61:],
            next(value for key, value in good.items() if key != first),  # another's
            pickle.dumps(Planted()),
        ):
            for key in good:
                empty.client.set(key, planted)
            before = metric(started, 'blocks_total{result="corrupt"}')
            found = distributions(started)
            assert found["items"] == answer["items"]
            assert metric(started, 'blocks_total{result="corrupt"}') > before
            stored(empty, 3)
            deadline = time.monotonic() + 5
            while {key: empty.client.get(key) for key in empty.stored()} != good:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert not marker.exists()
        assert all(b"abcab" not in key and b"abcab" not in value for key, value in good.items())


def test_a_redis_that_dies_and_comes_back(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server, service(tmp_path, server.url) as started:
        answer = distributions(started)
        stored(server, 3)
        server.kill()
        for _ in range(3):
            begin = time.monotonic()
            assert distributions(started)["items"] == answer["items"]
            assert time.monotonic() - begin < SOON
        server.start()
        deadline = time.monotonic() + 10
        while distributions(started)["cache"]["hit_rows"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            assert distributions(started)["items"] == answer["items"]
            assert time.monotonic() - begin < SOON
            begin = time.monotonic()
            assert distributions(started, {**ITEM, "prompt": "ba"})["cache"]["hit_rows"] == 0
            assert time.monotonic() - begin < SOON
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_redis_that_is_not_there_or_never_answers(tmp_path: Path) -> None:
    with service(tmp_path / "absent", f"unix://{tmp_path}/no.sock") as started:
        assert distributions(started)["cache"] == {"hit_rows": 0, "computed_rows": len(SOLUTION)}
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent.sock"))
    silent.listen(16)
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(silent.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        with service(tmp_path / "silent", f"unix://{tmp_path}/silent.sock", cache_timeout=0.25) as started:
            assert started.url
            begin = time.monotonic()
            distributions(started)
            assert time.monotonic() - begin < SOON
            assert metric(started, "available") == 0
    finally:
        silent.shutdown(socket.SHUT_RDWR)
        silent.close()
        thread.join(5)
        for connection in held:
            connection.close()


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_full_redis(tmp_path: Path, policy: str) -> None:
    options = ("--maxmemory", "2mb", "--maxmemory-policy", policy)
    with redis_server(tmp_path / "redis", *options) as server, service(tmp_path, server.url) as started:
        for index in range(12):
            items = [{"prompt": "ab", "solution": f"{'abc'[index % 3] * (index + 1)}{SOLUTION}"}] * 2
            body = {"model": "base", "items": items, "top_k": 3}
            assert httpx.post(f"{started.url}/distributions", json=body, timeout=20).status_code == 200
        server.client.execute_command("CONFIG", "SET", "maxmemory", "1")
        distributions(started, {"prompt": "ba", "solution": SOLUTION})
        deadline = time.monotonic() + 5
        while policy == "noeviction" and not metric(started, 'errors_total{operation="write"}'):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert distributions(started)["items"]
