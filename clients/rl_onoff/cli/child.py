"""The service as a child process: started, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from rl_onoff.client import Client
from rl_onoff.errors import LoadError, OnOffError

READY_SECONDS: Final = 300.0
STOP_SECONDS: Final = 15.0
PREFERRED_PORT: Final = 8000
_TAIL_LINES: Final = 15


@contextmanager
def running_service(checkout: Path, port: int) -> Iterator[ServiceChild]:
    """`rl-onoff serve` on the demo pair, in a session of its own: a Ctrl-C reaches it through us alone."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "rl_onoff.cli", "serve", "--port", str(port)],
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        child = ServiceChild(f"http://127.0.0.1:{port}", process, log)
        try:
            yield child
        finally:
            child.stop()


@dataclass(frozen=True, slots=True)
class ServiceChild:
    """A service of ours: where it listens, its process, and what it has said."""

    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def wait_ready(self) -> None:
        """Return when every pair is loaded. Raises LoadError when the service ends, or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        with Client(self.url, timeout=2.0, max_retries=0) as client:
            while not _is_ready(client):
                if self.process.poll() is not None:
                    raise LoadError(f"the service ended with code {self.process.returncode}:\n{self._tail()}")
                if time.monotonic() > deadline:
                    raise LoadError(f"the service was not ready after {READY_SECONDS:.0f} s:\n{self._tail()}")
                time.sleep(0.2)

    def wait(self) -> None:
        """Return when the service ends; it should not, so LoadError is raised."""
        code = self.process.wait()
        raise LoadError(f"the service ended with code {code}:\n{self._tail()}")

    def stop(self) -> None:
        """Ask the service to finish; kill it and its workers when it does not, or when asked again."""
        try:
            self.process.terminate()
            self.process.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _tail(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


def choose_port(port: int) -> int:
    """`port`, or for 0 the usual one if it is free, else any free one."""
    if port:
        return port
    for candidate in (PREFERRED_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise LoadError("there is no free port")


def _is_ready(client: Client) -> bool:
    try:
        return client.ready().ready
    except OnOffError:  # not listening yet
        return False
