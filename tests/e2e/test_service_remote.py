"""`launch: remote`: an agent, in a process of its own as in a container, starts the workers of a service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import Client
from rl_onoff.schemas import SwitchResponse
from tests.e2e.running_service import alive, running, table_pair

TOKEN = "a-token-of-this-test"


class AgentProcess:
    """A started agent."""

    def __init__(self, port: int, folder: Path, token: str = TOKEN) -> None:
        self.address = f"127.0.0.1:{port}"
        self.log = folder / "agent.log"
        environment = {**os.environ, "RL_ONOFF_WORKER_TOKEN": token}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers.agent", "--port", str(port)], stderr=log, env=environment
            )

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(15)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def agent(port: int, folder: Path, token: str = TOKEN) -> Iterator[AgentProcess]:
    started = AgentProcess(port, folder, token)
    try:
        yield started
    finally:
        started.end(signal.SIGKILL)


def document(folder: Path, port: int, **more: Any) -> dict[str, Any]:
    pair = table_pair(folder, endless=True, delay=0.01, max_len=100_000)
    for side in ("a", "b"):
        pair[side]["path"] = str(folder / pair[side]["path"])  # on the agent's machine
    return {"pairs": [pair | {"launch": "remote", "agents": [f"127.0.0.1:{port}"]}], "worker_token": TOKEN, **more}


def text(url: str, tokens: int = 150) -> SwitchResponse:
    with (
        Client(url, max_retries=0) as client,
        client.switch_generate("b", stream=True, seed=3, max_tokens=tokens) as stream,
    ):
        for _ in stream:
            pass
        return stream.result


def disturbed(url: str, disturb: Callable[[], object]) -> SwitchResponse:
    """The text, `disturb` being called in its midst."""
    timer = threading.Timer(0.6, disturb)
    timer.start()
    try:
        return text(url)
    finally:
        timer.join()


def gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_workers_of_an_agent_die_and_come_back_and_no_text_changes(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, document(tmp_path, port, step_timeout=2, most_deaths=20)) as service:
        time.sleep(0.5)  # the agent may come later than the service
        with agent(port, tmp_path) as first:
            wanted = text(service.url)
            assert len(wanted.token_ids) == 150
            (worker,) = first.workers
            got = disturbed(service.url, lambda: os.kill(worker, signal.SIGKILL))
            assert (got.token_ids, got.leads) == (wanted.token_ids, wanted.leads)
            (worker,) = first.workers
            got = disturbed(service.url, lambda: os.kill(worker, signal.SIGSTOP))  # it hangs
            assert (got.token_ids, got.leads) == (wanted.token_ids, wanted.leads)
            service.wait_for(lambda: gone([worker]))
            left = first.workers
            second: list[AgentProcess] = []

            def replaced() -> None:
                first.end(signal.SIGKILL)
                second.append(AgentProcess(port, tmp_path))

            try:
                got = disturbed(service.url, replaced)
                assert (got.token_ids, got.leads) == (wanted.token_ids, wanted.leads)
                assert gone(left)
                left = second[0].workers
                assert len(left) == 1
                service.process.kill()
                service.wait_for(lambda: gone(left))
                assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
                assert second[0].end() == 0
            finally:
                for each in second:
                    each.end(signal.SIGKILL)


def test_who_does_not_know_the_token_starts_nothing(tmp_path: Path) -> None:
    port = free_port()
    with agent(port, tmp_path, token="another-token-than-that") as other:
        with running(tmp_path, document(tmp_path, port)) as service:
            assert service.said()[-1].endswith("does not know the service's worker token")
            assert service.process.returncode == 1
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}"}):
            assert httpx.post(f"http://{other.address}/worker", content=b"{}", headers=headers).status_code == 401
        good = {"Authorization": "Bearer another-token-than-that"}
        assert httpx.post(f"http://{other.address}/worker", content=b"{}", headers=good).status_code == 400
        assert other.workers == []
        assert TOKEN not in service.log.read_text()
        assert "another-token" not in other.log.read_text()


def test_a_pair_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    port = free_port()
    wrong = document(tmp_path, port)
    wrong["pairs"][0]["a"]["path"] = str(tmp_path / "nothing.json")
    with agent(port, tmp_path), running(tmp_path, wrong) as service:
        said = service.said()[-1]
        assert "pair pair:" in said
        assert "nothing.json" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worker_token": None}, "set RL_ONOFF_WORKER_TOKEN"),
        ({"worker_token": None, "worker_token_file": "/nowhere"}, "worker_token_file"),
    ],
)
def test_a_service_without_a_token_does_not_begin(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with running(tmp_path, document(tmp_path, 1) | change) as service:
        assert message in service.said()[-1]
        assert service.process.returncode == 2


@pytest.mark.parametrize("token", ["", "short"])
def test_an_agent_without_a_token_does_not_begin(tmp_path: Path, token: str) -> None:
    started = AgentProcess(free_port(), tmp_path, token)
    assert started.process.wait(20) == 2
    assert "RL_ONOFF_WORKER_TOKEN" in started.log.read_text()
