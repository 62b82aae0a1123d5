"""The SGLang server of one model as a child process, in a session of its own: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rl_onoff.errors import LoadError
from workers.backends.sglang.endpoint import POLL_SECONDS, Endpoint
from workers.backends.sglang.orders import OWNER, VOCAB_SIZE

_KEPT_LINES: Final = 12
_ENTRY_POINT: Final = "[sglang.srt.plugins]\nrl_onoff = workers.backends.sglang.plugin:register\n"


class Server(Endpoint):
    """A server on 127.0.0.1. It answers once `wait_ready` has returned; `on_end` tells its end at once."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], vocab_size: int) -> None:
        port = _free_port()
        super().__init__(name, f"http://127.0.0.1:{port}", secrets.token_hex(32))
        self._folder = Path(tempfile.mkdtemp(prefix="rl-onoff-sglang-"))
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._code: int | None = None
        self.ended = threading.Event()
        _write_plugin(self._folder)
        stdin, self._life = os.pipe()
        output, stdout = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.backends.sglang.child"],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(self._folder, environment, vocab_size),
        )
        os.close(stdin)
        os.close(stdout)
        address = ["--host", "127.0.0.1", "--port", str(port), "--api-key", self.key]
        document = {"arguments": [*arguments, *address], "folder": str(self._folder)}
        with contextlib.suppress(BrokenPipeError):  # it died at once: `wait_ready` will tell
            os.write(self._life, json.dumps(document).encode() + b"\n")
        threading.Thread(target=self._pump, args=(output,), name=f"sglang-{name}-log", daemon=True).start()
        threading.Thread(target=self._wait, name=f"sglang-{name}-end", daemon=True).start()

    @property
    def pid(self) -> int:
        """Also the number of its session and process group."""
        return self._process.pid

    @property
    def end(self) -> str:
        """How it ended."""
        if self._code is None:
            return "is running"
        return f"was killed by signal {-self._code}" if self._code < 0 else f"ended with code {self._code}"

    def wait_ready(self, deadline: float) -> None:
        """Return once it answers. Raises LoadError when it ends, or does not by `deadline` (`time.monotonic`)."""
        while not self.ended.wait(POLL_SECONDS):
            if self.answers():
                return
            if time.monotonic() > deadline:
                raise LoadError(f"the SGLang server of model {self.name} was not ready in time: {self._last()}")
        time.sleep(POLL_SECONDS)  # for the last of its output
        raise LoadError(f"the SGLang server of model {self.name} {self.end}: {self._last()}")

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread, once the server has ended; now if it has already."""
        with self._lock:
            if not self.ended.is_set():
                self._callbacks.append(callback)
                return
        callback()

    async def until_ended(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(None)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # that loop has ended before the server
                loop.call_soon_threadsafe(settle)

        self.on_end(tell)
        await future

    async def ends_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.until_ended(), seconds)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """End it now: asked politely, SGLang takes ten seconds to put away what the system puts away at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.ended.wait()

    def _wait(self) -> None:
        self._code = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it had started itself
            os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self._life)
        shutil.rmtree(self._folder, ignore_errors=True)
        with self._lock:
            self.ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _pump(self, output: int) -> None:
        """Its output goes to our log; the last lines are kept for the error."""
        with os.fdopen(output, errors="replace") as lines:
            for line in lines:
                self._tail.append(line.rstrip())
                print(f"[sglang {self.name}] {line.rstrip()}", file=sys.stderr, flush=True)

    def _last(self) -> str:
        lines = [line for line in self._tail if line.strip()]
        return " | ".join(lines[-3:]) or "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_plugin(folder: Path) -> None:
    """What SGLang finds our plugin by, for this server alone: nothing is installed."""
    information = folder / "rl_onoff_sglang-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: rl-onoff-sglang\nVersion: 1\n")
    (information / "entry_points.txt").write_text(_ENTRY_POINT)


def _environment(folder: Path, extra: Mapping[str, str], vocab_size: int) -> dict[str, str]:
    roots = {str(folder): None}
    for package in ("workers", "rl_onoff"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[str(Path(next(iter(spec.submodule_search_locations))).parent)] = None
    path = [*roots, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "TMPDIR": str(folder),  # its sockets
        "SGLANG_TIMEOUT_KEEP_ALIVE": "86400",  # or it closes a connection just as we send
        **extra,
        "PYTHONPATH": os.pathsep.join(path),
        OWNER: str(os.getpid()),
        VOCAB_SIZE: str(vocab_size),
    }
