"""Pairs whose workers run on nodes of a Ray cluster: placed, resumed on another node, stopped, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient
from rl_onoff.schemas import SwitchResponse
from tests.e2e.running_service import RunningService, alive, events, running, table_pair
from tests.ray.conftest import Cluster, workers

STREAM = {"prompt": "b", "stream": True}


def pair(folder: Path, cluster: Cluster, replicas: int, delay: float = 0.02, **table: Any) -> dict[str, Any]:
    """One worker a node: each node has one `place`."""
    made = table_pair(folder, endless=True, delay=delay, max_len=100_000, **table)
    for side in ("a", "b"):
        made[side]["path"] = str(folder / made[side]["path"])
    ray = {"address": cluster.address, "num_gpus": 0, "num_cpus": 1, "resources": {"place": 1}}
    return {**made, "launch": "ray", "replicas": replicas, "ray": ray}


def states(url: str) -> list[str]:
    (card,) = httpx.get(f"{url}/models").json()["pairs"]
    return sorted(card["replicas"])


async def switched(client: AsyncClient, seed: int) -> SwitchResponse:
    sampling = {"max_tokens": 150, "seed": seed}
    stream = await client.switch_generate(prompt="b", sampling=sampling, stream=True)
    async with stream as events:
        async for _ in events:
            pass
        return events.result


async def test_streams_of_a_node_that_dies_go_on_on_the_other(tmp_path: Path, cluster: Cluster) -> None:
    cluster.add("n1", "n2")
    with running(tmp_path, {"pairs": [pair(tmp_path, cluster, 2)], "stop_seconds": 5}) as service:
        url = service.url
        assert len(workers()) == 2
        async with AsyncClient(url, timeout=60) as client, httpx.AsyncClient(base_url=url) as http:
            wanted = await asyncio.gather(*(switched(client, seed) for seed in range(8)))
            streams = [asyncio.create_task(switched(client, seed)) for seed in range(8)]
            await asyncio.sleep(0.5)
            page = (await http.get("/metrics")).text
            for replica in "01":
                assert f'rl_onoff_worker_outstanding{{pair="pair",replica="{replica}"}} 4.0' in page
            await asyncio.to_thread(cluster.kill, "n1")
            await asyncio.sleep(0.2)
            assert (await http.get("/ready")).status_code == 200
            got = await asyncio.gather(*streams)
            page = (await http.get("/metrics")).text
        for want, have in zip(wanted, got, strict=True):
            for field in ("text", "token_ids", "leads", "divergences", "finish_reason"):
                assert getattr(have, field) == getattr(want, field), field
        assert 'rl_onoff_resumed_total{pair="pair"} 4.0' in page
        service.wait_for(lambda: states(url) == ["lost", "ready"])
        cluster.add("n3")  # where the lost one waits for
        service.wait_for(lambda: states(url) == ["ready", "ready"], 40)
        service.terminate()
        assert service.exit_code(15) == 0
    gone(service)


def gone(service: RunningService) -> None:
    service.wait_for(lambda: not workers(), 10)


async def test_two_nodes_do_nearly_twice_the_work(tmp_path: Path, cluster: Cluster) -> None:
    """A pass waits as for a GPU, one at a time."""
    cluster.add("n2", "n3")
    seconds = {}
    for replicas in (1, 2):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        with running(
            folder, {"pairs": [pair(folder, cluster, replicas, delay=0.1, turns=True)], "stop_seconds": 5}
        ) as service:
            async with AsyncClient(service.url, timeout=60) as client:

                async def generated(count: int, tokens: int) -> None:
                    sampling = {"max_tokens": tokens, "n": count}
                    await client.generate(model="base", prompt="b", sampling=sampling)

                await generated(4, 2)
                began = time.monotonic()
                await generated(16, 4)
                seconds[replicas] = time.monotonic() - began
            service.terminate()
            assert service.exit_code(15) == 0
    assert seconds[1] / seconds[2] >= 1.8, seconds


def test_nothing_of_a_service_that_is_killed_stays_in_the_cluster(tmp_path: Path, cluster: Cluster) -> None:
    cluster.add("n2", "n3")
    with running(tmp_path, {"pairs": [pair(tmp_path, cluster, 1)]}) as service:
        assert service.url
        assert len(workers()) == 1
        service.process.kill()
        gone(service)


def test_the_service_outlives_the_head_of_its_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a client that cannot reach the head: here that is a process beside the service."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "8")  # a minute unless said
    cluster = Cluster()
    try:
        cluster.add("n1")
        document = {"pairs": [pair(tmp_path, cluster, 1)], "resume_seconds": 2, "most_deaths": 3}
        with running(tmp_path, document) as service, httpx.Client(base_url=service.url, timeout=60) as http:
            body = {"prompt": "b", "stream": True, "sampling": {"max_tokens": 5_000, "seed": 1}}
            with http.stream("POST", "/switch-generate", json=body) as response:
                received = events(response)
                assert next(received)[0] == "token"
                cluster.lose_head()
                *_, (name, _, problem) = received
            assert (name, problem["type"]) == ("error", "urn:rl-onoff:problem:worker-lost")
            service.wait_for(lambda: "trying again" in service.log.read_text())
            assert (http.get("/health").status_code, http.get("/ready").status_code) == (200, 503)
            service.process.kill()
    finally:
        cluster.kill_all()


def test_workers_see_the_gpus_they_were_given_on_the_nodes_asked_for(tmp_path: Path, cluster: Cluster) -> None:
    """What a node is said to have, Ray does not look for: only which worker sees which is tested here."""
    cluster.add("n2", "n3")
    made = pair(tmp_path, cluster, 2)
    made["ray"] |= {"num_gpus": 2, "resources": {}, "labels": {"name": "n3"}}
    with running(tmp_path, {"pairs": [made], "stop_seconds": 5}) as service:
        assert service.url
        environments = [Path(f"/proc/{worker}/environ").read_bytes().split(b"\0") for worker in workers()]
        seen = [e.removeprefix(b"CUDA_VISIBLE_DEVICES=") for env in environments for e in env if b"VISIBLE_D" in e]
        assert sorted(gpu for gpus in seen for gpu in gpus.split(b",")) == [b"0", b"1", b"2", b"3"]
        service.terminate()
        assert service.exit_code(15) == 0


def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path, cluster: Cluster) -> None:
    cluster.add("n2", "n3")
    with running(tmp_path, {"pairs": [pair(tmp_path, cluster, 1)], "step_timeout": 2, "stop_seconds": 5}) as service:
        url = service.url
        (worker,) = workers()
        os.kill(worker, signal.SIGSTOP)
        body = {"prompt": "b", "sampling": {"max_tokens": 20, "seed": 1}}
        assert httpx.post(f"{url}/switch-generate", json=body, timeout=60).status_code == 200
        assert workers() not in ([], [worker])
        assert not alive(worker)


@pytest.mark.parametrize(
    ("ray", "reason"),
    [
        ({"address": "127.0.0.1:9", "num_gpus": 0}, "no Ray cluster at 127.0.0.1:9"),
        ({"address": "127.0.0.1", "num_gpus": 0}, "no Ray cluster at 127.0.0.1"),
    ],
)
def test_no_cluster_is_said_and_ends_the_service(tmp_path: Path, ray: dict[str, Any], reason: str) -> None:
    with running(tmp_path, {"pairs": [{**table_pair(tmp_path), "launch": "ray", "ray": ray}]}) as service:
        assert service.exit_code(20) == 1
        assert reason in service.said()[0]


def test_another_token_is_refused(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with running(tmp_path, {"pairs": [pair(tmp_path, cluster, 1)]}) as service:
        assert service.exit_code(60) == 1
        assert "no Ray cluster at" in service.said()[0]
