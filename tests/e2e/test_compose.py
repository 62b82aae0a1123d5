"""compose.yaml as plain processes: the service and a worker over TCP, Redis under its ACL, keys, cache, drain."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import httpx
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.e2e.compose import Topology
from tests.e2e.running_service import events

pytestmark = pytest.mark.slow

ITEM = {"prompt": "Q: 49-8=", "solution": "\n1 so guess 41\nA: 41"}
SWITCH = {"prompt": "Q: 49-8-6+7=", "policy": {"kind": "divergence", "on": 0.1}, "sampling": {"seed": 1}}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    topology = Topology(tmp_path_factory.mktemp("compose"))
    try:
        for name in ("service", "worker-hf", "redis"):  # Compose starts them in no order either
            topology.start(name)
        topology.wait_for("service", "serving on")
        yield topology
    finally:
        topology.stop()


@pytest.fixture
def http(topology: Topology) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=topology.url, headers={"Authorization": f"Bearer {topology.key}"}, timeout=300
    ) as client:
        yield client


def test_it_generates_for_those_who_have_a_key(topology: Topology, http: httpx.Client) -> None:
    asked = {"model": "base", "prompt": "Q: 49-8-6+7=", "sampling": {"max_tokens": 8, "seed": 1}}
    assert http.post("/generate", json=asked).json()["results"][0]["text"]
    assert httpx.post(f"{topology.url}/generate", json=asked).status_code == 401
    assert len(http.get("/examples").json()["pairs"]["demo"]) == 100


def test_rows_come_back_from_redis(topology: Topology, http: httpx.Client) -> None:
    asked = {"model": "rl", "items": [ITEM], "top_k": 2}
    first, second = (http.post("/distributions", json=asked).json() for _ in range(2))
    assert second["cache"]["computed_rows"] == 0
    assert second["cache"]["hit_rows"] > 0
    assert first["items"] == second["items"]
    whole = {"model": "rl", "items": [ITEM]}
    tensors = {"Accept": "application/vnd.safetensors"}
    first, second = (http.post("/distributions", json=whole, headers=tensors).content for _ in range(2))
    assert len(first) == len(second)
    page = http.get("/metrics").text
    hit, computed = (
        float(re.findall(rf'rl_onoff_cache_rows_total{{pair="demo",source="{source}"}} ([0-9.]+)', page)[0])
        for source in ("cache", "model")
    )
    assert hit == computed  # every row once from the model, once from Redis
    assert "rl_onoff_cache_available 1.0" in page
    assert not re.search(r"rl_onoff_cache_errors_total\{[^}]*\} [1-9]", page)


def test_redis_lets_the_service_do_what_the_service_does(topology: Topology) -> None:
    address, password = topology.addresses["redis"], (topology.folder / "secrets/redis_password").read_text()
    with redis.Redis(address, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(address, username="rl-onoff", password=password) as known:
        assert known.set("rl-onoff:test", "1", ex=60)
        assert known.unlink("rl-onoff:test") == 1
        for refused in (
            lambda: known.get("other"),
            lambda: known.keys("*"),
            lambda: known.flushall(),
            lambda: known.config_get("maxmemory"),
            lambda: known.set("other", "1"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                refused()


def test_workers_know_the_service_by_its_token(topology: Topology) -> None:
    agent = f"http://{topology.addresses['worker-hf']}:9000"
    assert httpx.get(f"{agent}/health").status_code == 200
    for headers in ({}, {"Authorization": f"Bearer {'0' * 64}"}):
        assert httpx.post(f"{agent}/worker", json={}, headers=headers).status_code == 401
    worker = f"http://{topology.addresses['worker-hf']}:9001"
    assert httpx.get(f"{worker}/info").status_code == 401


def test_a_worker_container_that_dies_is_found_again(topology: Topology, http: httpx.Client) -> None:
    """Killed in the middle of a stream, started again as its restart policy does: the text is the same."""
    asked = {**SWITCH, "stream": True}
    wanted = http.post("/switch-generate", json=SWITCH).json()["text"]
    with http.stream("POST", "/switch-generate", json=asked) as response:
        seen = events(response)
        assert next(seen)[0] == "token"
        topology.processes["worker-hf"].send_signal(signal.SIGKILL)
        topology.processes["worker-hf"].wait()
        topology.start("worker-hf")
        (done,) = [data for kind, _, data in seen if kind == "done"]
    assert done["text"] == wanted
    # Should the text have been written before the worker died: what is asked now is its successor's.
    assert http.post("/switch-generate", json=SWITCH).json()["text"] == wanted


def test_what_runs_may_end_when_the_service_is_stopped(topology: Topology, http: httpx.Client) -> None:
    with http.stream("POST", "/switch-generate", json={**SWITCH, "stream": True}) as response:
        seen = events(response)
        assert next(seen)[0] == "token"
        topology.processes["service"].send_signal(signal.SIGTERM)
        assert [kind for kind, _, _ in seen][-1] == "done"
    assert topology.processes["service"].wait(10) == 0
    assert topology.processes["worker-hf"].poll() is None
