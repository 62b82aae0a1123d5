"""`rl-onoff demo` and the service it starts: what it shows, and that nothing is left running however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl_onoff.cli.child import running_service
from rl_onoff.errors import LoadError

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "rl_onoff.cli", "demo"]

pytestmark = pytest.mark.slow


def descendants(pid: int) -> set[int]:
    """The processes below one, from /proc."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = {int(child) for child in children.read_text().split()} if children.exists() else set()
    return found | {below for child in found for below in descendants(child)}


def running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The demo running, and the file it writes to."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(DEMO, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        yield process, log
        process.kill()
        process.wait()


def test_the_demo_shows_measures_serves_and_ends_with_ctrl_c(demo: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, log = demo
    wait_for(lambda: b"Ctrl-C ends it" in log.read_bytes() or process.poll() is not None, 400, "it never got there")
    said = log.read_text()
    assert said.count("right  ") + said.count("wrong, it is") == 3
    for row in ("A alone", "B alone", "A, and B where JS > ", "A, and B as often at random"):
        assert re.search(re.escape(row) + r"[^│]*│ +[\d.]+ ± [\d.]+ +│ +[\d.]+ ± [\d.]+ +│", said), said
    url = re.search(r"service answers at (http://\S+)", said)
    assert url is not None
    assert f"curl -N {url[1]}/switch-generate" in said
    with urllib.request.urlopen(f"{url[1]}/ready") as answer:
        assert answer.status == 200
    below = descendants(process.pid)
    assert len(below) >= 2  # the service and its worker
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    wait_for(lambda: not any(map(running, below)), 10, "something still runs")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_while_it_starts(demo: tuple[subprocess.Popen[bytes], Path], by: signal.Signals) -> None:
    process, log = demo
    wait_for(lambda: len(descendants(process.pid)) >= 2, 60, "no worker was started")
    below = descendants(process.pid)
    process.send_signal(by)
    assert process.wait(30) != 0
    assert b"Traceback" not in log.read_bytes()
    wait_for(lambda: not any(map(running, below)), 10, "something still runs")


def test_a_service_that_cannot_start_says_why() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_service(ROOT, port) as service, pytest.raises(LoadError, match="the service ended") as caught:
            service.wait_ready()
    assert str(port) in caught.value.detail
    assert not os.path.exists(f"/proc/{service.process.pid}")
