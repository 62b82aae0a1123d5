"""A worker as a subprocess of the service, in a process group of its own.

The worker reads its specification as one line of JSON from standard input, which then stays open: when it closes, the
parent is gone and the worker ends. Standard output carries at most one line, the problem that kept it from loading;
standard error is the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from workers.wire import WorkerSpec

COMMAND = (sys.executable, "-m", "workers")

_KEPT_OUTPUT = 64 << 10


class LocalWorker:
    """A started process. `start` it, `wait` for its end, `stop` it; whatever it started dies with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stdin = cast(asyncio.StreamWriter, process.stdin)
        self._stdout = cast(asyncio.StreamReader, process.stdout)
        self._output = b""
        self._ended = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, spec: WorkerSpec, command: Sequence[str] = COMMAND) -> LocalWorker:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = cls(process)
        worker._stdin.write(msgspec.json.encode(spec) + b"\n")
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code once it has ended; negative for a signal."""
        return await asyncio.shield(self._ended)

    @property
    def problem(self) -> dict[str, Any] | None:
        """After its end: the problem it left on standard output, if any."""
        lines = self._output.strip().splitlines()
        try:
            problem = json.loads(lines[-1]) if lines else None
        except ValueError:
            return None
        return problem if isinstance(problem, dict) and "detail" in problem else None

    async def stop(self, grace: float) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL; returns once it is gone."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _reap(self) -> int:
        reading = asyncio.create_task(self._read_output())
        code = await self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it had started itself
            os.killpg(self._process.pid, signal.SIGKILL)
        await reading
        self._stdin.close()
        return code

    async def _read_output(self) -> None:
        while chunk := await self._stdout.read(_KEPT_OUTPUT):
            self._output = (self._output + chunk)[-_KEPT_OUTPUT:]
