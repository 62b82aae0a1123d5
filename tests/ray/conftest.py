"""A real cluster of several nodes on this machine, with tokens."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOKEN = secrets.token_hex(32)
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stays on 127.0.0.1 where Ray would look for the machine's address
}


class Cluster:
    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets: paths must be short
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT, "RAY_TMPDIR": self.directory},
        )
        self.address = self._answer()
        self.nodes: set[str] = set()

    def add(self, *names: str) -> None:
        for name in names:
            if name not in self.nodes:
                self._tell(f"add {name}")
                self.nodes.add(name)

    def kill(self, name: str) -> None:
        self._tell(f"kill {name}")
        self.nodes.remove(name)

    def close(self) -> None:
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise

    def lose_head(self) -> None:
        """SIGKILL to what holds the cluster together; nothing can be told to it afterwards."""
        (head,) = _processes(lambda command: command[0].endswith(b"gcs_server"), self.directory.encode())
        os.kill(head, signal.SIGKILL)

    def kill_all(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def _ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def workers() -> list[int]:
    """The worker processes on the clusters' nodes."""
    return _processes(lambda command: command[1:3] == [b"-m", b"workers"], TOKEN.encode())


def _processes(wanted: Callable[[list[bytes]], bool], environment: bytes) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if wanted(command) and environment in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
