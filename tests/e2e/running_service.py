"""The service as an operator runs it: a process, started from a `models.yaml`, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

_PROGRAM = """
import asyncio, signal, sys
from app.config import load
from app.main import serve

def tell(*_):
    print("tasks", len(asyncio.all_tasks(asyncio.get_running_loop())), file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, tell)
sys.exit(serve(load()))
"""
_START_SECONDS = 90.0

TOKENS = ["a", "b", "c", "d", "é", "<eos>"]
#: After "a" the two disagree; a third of the vocabulary of one is impossible for the other.
TABLE_A = {"": {"a": 0.5, "b": 0.3, "c": 0.1, "<eos>": 0.1}, "a": {"b": 0.7, "c": 0.3}}
TABLE_B = {"": {"a": 0.4, "b": 0.4, "d": 0.1, "<eos>": 0.1}, "a": {"b": 0.1, "c": 0.9}}
#: Never ends by itself.
ENDLESS_A = {"": {"a": 0.5, "b": 0.5}, "a": {"b": 0.9, "c": 0.1}}
ENDLESS_B = {"": {"a": 0.5, "b": 0.5}, "a": {"b": 0.1, "c": 0.9}}


def write_table(path: Path, rows: dict[str, dict[str, float]], **more: Any) -> str:
    path.write_text(json.dumps({"tokens": TOKENS, "eos": "<eos>", "max_len": 200, "rows": rows, **more}))
    return path.name


def table_pair(folder: Path, name: str = "pair", *, endless: bool = False, **more: Any) -> dict[str, Any]:
    """A pair of `models.yaml` over two tables written to `folder`; the models of `pair` are called base and tuned."""
    rows_a, rows_b = (ENDLESS_A, ENDLESS_B) if endless else (TABLE_A, TABLE_B)
    prefix = "" if name == "pair" else f"{name}-"
    return {
        "name": name,
        "backend": "table",
        "sequences": 256,  # a table computes all it is asked at the same time
        "a": {"name": f"{prefix}base", "path": write_table(folder / f"{name}-a.json", rows_a, **more)},
        "b": {"name": f"{prefix}tuned", "path": write_table(folder / f"{name}-b.json", rows_b, **more)},
    }


class RunningService:
    """A started service. What it writes to standard error goes to `log`; `tasks` counts what it is at."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        (folder / "models.yaml").write_text(yaml.safe_dump({"port": 0, **document}))
        self.log = folder / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RL_ONOFF_")}
        environment |= {"RL_ONOFF_CONFIG": str(folder / "models.yaml"), "TMPDIR": str(folder)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", _PROGRAM], stderr=log, env=environment)

    def wait_for(self, condition: Callable[[], Any], seconds: float = _START_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(self.log.read_text())
            time.sleep(0.02)
        return found

    @property
    def url(self) -> str:
        def announced() -> str | None:
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended with {self.process.returncode}: {self.log.read_text()}")
            lines = self.log.read_text().splitlines()
            return next((line.split()[-1] for line in lines if "serving on http" in line), None)

        return str(self.wait_for(announced))

    def said(self) -> list[str]:
        """Its own lines, once it has ended."""
        self.exit_code(_START_SECONDS)
        return [line for line in self.log.read_text().splitlines() if line.startswith("rl-onoff:")]

    @property
    def workers(self) -> list[int]:
        """The process ids of its children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    @property
    def tasks(self) -> int:
        """The asyncio tasks of the service."""

        def told() -> list[str]:
            return [line.split()[1] for line in self.log.read_text().splitlines() if line.startswith("tasks ")]

        before = len(told())
        self.process.send_signal(signal.SIGUSR1)
        self.wait_for(lambda: len(told()) > before)
        return int(told()[-1])

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def resident(self) -> int:
        """Bytes of memory that are really there."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def seconds_used(self) -> float:
        """Of a processor, without its workers'."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds: float = 10) -> int:
        return self.process.wait(seconds)


@contextmanager
def running(folder: Path, document: dict[str, Any]) -> Iterator[RunningService]:
    service = RunningService(folder, document)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def events(response: httpx.Response) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """The (event, id, data) of a stream, comments left out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if fields:
                yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
