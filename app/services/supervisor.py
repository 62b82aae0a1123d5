"""The workers of all pairs, and the folder of their sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from app.config import Settings
from app.services.replicas import Replicas
from app.services.telemetry import Telemetry
from app.services.worker import PairWorker
from rl_onoff.errors import LoadError
from workers.launch.local import COMMAND

_PREFIX = "rl-onoff-"
#: A socket's path ends in the pair's name and "/.123.123456"; the system takes 107 bytes, elsewhere 103.
_NUMBER_BYTES = 12
_SOCKET_PATH_BYTES = 100


class Supervisor:
    """All pairs, and the private folder their sockets lie in."""

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._tasks: list[asyncio.Task[None]] = []
        self._folder: Path | None = None
        self.telemetry = Telemetry()
        self.pairs: dict[str, Replicas] = {}

    async def start(self) -> None:
        self._folder = _socket_folder(max(len(config.name) for config in self._settings.pairs))
        for config in self._settings.pairs:
            replicas = self.pairs[config.name] = Replicas(
                config, self.telemetry, self._settings.resume_seconds, self._settings.limits
            )
            replicas.workers = [
                PairWorker(replicas, number, self._settings, self._folder, self._command)
                for number in range(config.replicas)
            ]
        self._tasks = [asyncio.create_task(worker.run()) for worker in self.workers]

    @property
    def workers(self) -> list[PairWorker]:
        return [worker for pair in self.pairs.values() for worker in pair.workers]

    @property
    def ready(self) -> bool:
        return bool(self.pairs) and all(pair.state == "ready" for pair in self.pairs.values())

    async def until_ready(self) -> None:
        """Returns once every worker was ready. Raises what kept one from it."""
        failed = asyncio.create_task(self.until_failed())
        everyone = asyncio.create_task(self._every_first())
        try:
            await asyncio.wait({everyone, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
        finally:
            everyone.cancel()
            failed.cancel()
            await asyncio.gather(everyone, failed, return_exceptions=True)

    async def _every_first(self) -> None:
        for worker in self.workers:
            await worker.first_ready.wait()

    async def until_failed(self) -> None:
        """Never returns; raises the LoadError or CrashLoop that ends a pair for good."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def kill(self) -> None:
        """While `stop` waits: wait no longer."""
        for worker in self.workers:
            worker.kill()

    async def stop(self, grace: float) -> None:
        """Every worker gone, the folder too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop(grace) for worker in self.workers))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _socket_folder(longest_name: int) -> Path:
    """A new private folder (0700) for unix sockets, whose paths must be short."""
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        if len(os.fsencode(folder)) + longest_name + _NUMBER_BYTES > _SOCKET_PATH_BYTES:
            os.rmdir(folder)
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    except OSError as error:
        raise LoadError(
            f"no folder for the workers' sockets can be made: {error}; TMPDIR names another place"
        ) from error
    return Path(folder)
