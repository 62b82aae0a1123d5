"""A worker as a subprocess of the service, in a process group of its own.

The worker reads its specification as one line of JSON from standard input, which then stays open: when it closes, the
parent is gone and the worker ends. Standard output carries at most one line: the problem that kept it from loading, or
the address of one that listens on TCP. Standard error is the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from rl_onoff.errors import LoadError
from workers.wire import DUMP_SIGNAL, PlacedSpec, RemoteSpec, WorkerSpec

COMMAND = (sys.executable, "-m", "workers")

#: Threads of OpenMP that wait sleep: spinning, on cores shared with anything else, costs several times what it saves.
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE"}
#: But to wake them for each of a pass's hundreds of operations takes a quarter of its time: if nothing else computes,
#: they spin over the gap between two of them (libgomp counts turns of its loop; it heeds this before the policy).
_ALONE = {"GOMP_SPINCOUNT": "5000"}

_QUOTA = Path("/sys/fs/cgroup/cpu.max")

#: The service's secrets, which neither a worker nor the engines it starts has a use for.
_WITHHELD = frozenset({"RL_ONOFF_API_KEYS", "RL_ONOFF_CACHE_URL", "RL_ONOFF_WORKER_TOKEN"})

_EMPTY: Mapping[str, str] = MappingProxyType({})

_KEPT_OUTPUT = 64 << 10
#: For the last of its output to arrive, once it has ended.
_OUTPUT_SECONDS = 1.0
_DUMP_SECONDS = 0.5


def _environment(alone: bool) -> dict[str, str]:
    chosen = _DEFAULTS.keys() & os.environ.keys()
    defaults = _DEFAULTS | _ALONE if alone and not chosen and not _has_quota() else _DEFAULTS
    return {**defaults, **{name: value for name, value in os.environ.items() if name not in _WITHHELD}}


def _has_quota() -> bool:
    """Whether a control group (v2) bounds the processors' time: what spins would use it up."""
    try:
        return not _QUOTA.read_text().startswith("max")
    except OSError:
        return False


class LocalWorker:
    """A started process. `start` it, `wait` for its end, `stop` it; whatever it started dies with it."""

    def __init__(self, process: asyncio.subprocess.Process, life: int, output: int) -> None:
        self._process = process
        self._life = life
        self._output = b""
        self._ended = asyncio.create_task(self._reap(output))

    @classmethod
    async def start(
        cls,
        spec: WorkerSpec | PlacedSpec | RemoteSpec,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] = _EMPTY,
        *,
        alone: bool = False,
    ) -> LocalWorker:
        """With `environment` over this process's; `alone` if nothing else is to compute on the machine's processors.

        Raises LoadError where the command cannot be run.
        """
        # Pipes of our own: with asyncio's, `wait` would also wait for whoever else holds them, a child's child say.
        stdin, life = os.pipe()
        output, stdout = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=stdin, stdout=stdout, start_new_session=True, env={**_environment(alone), **environment}
            )
        except BaseException as error:
            os.close(life)
            os.close(output)
            if isinstance(error, OSError):
                raise LoadError(f"cannot run {command[0]}: {error.strerror}") from error
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        with contextlib.suppress(BrokenPipeError):  # it died at once: `wait` will tell
            os.write(life, msgspec.json.encode(spec) + b"\n")
        return cls(process, life, output)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code once it has ended; negative for a signal."""
        return await asyncio.shield(self._ended)

    @property
    def problem(self) -> dict[str, Any] | None:
        """After its end: the problem it left on standard output, if any."""
        problem = self._said()
        return problem if "detail" in problem else None

    @property
    def address(self) -> str | None:
        """The host:port it has told; None until then."""
        address = self._said().get("address")
        return address if isinstance(address, str) else None

    def _said(self) -> dict[str, Any]:
        lines = self._output.strip().splitlines()
        try:
            said = json.loads(lines[-1]) if lines else None
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

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

    async def dump(self) -> None:
        """Have it write the stack of each of its threads to its standard error, as far as it still can."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, DUMP_SIGNAL)
            await asyncio.wait({self._ended}, timeout=_DUMP_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _reap(self, output: int) -> int:
        reading = asyncio.create_task(self._read(output))
        code = await self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it had started itself
            os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self._life)
        await asyncio.wait({reading}, timeout=_OUTPUT_SECONDS)
        reading.cancel()
        return code

    async def _read(self, output: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        try:
            while chunk := await reader.read(_KEPT_OUTPUT):
                self._output = (self._output + chunk)[-_KEPT_OUTPUT:]
        finally:
            transport.close()
