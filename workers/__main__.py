"""`python -m workers`: read a `WorkerSpec` from standard input, load the pair, serve it.

Standard input stays open as long as the parent lives: its end is the parent's death, and this process's. A pair
that cannot be loaded is reported as one line of JSON (a problem) on standard output and exit code 3; one whose engine
has ended, by exit code 4.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from rl_onoff.errors import ConfigurationError, LoadError, WorkerLost
from workers.backends import load_pair
from workers.host import serve
from workers.wire import WorkerSpec

EXIT_LOAD_FAILED = 3
EXIT_LOST = 4
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Two nets: the end of standard input (any platform), and on Linux the kernel's own signal."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_line(descriptor: int) -> bytes:
    """One line, byte by byte: a buffered reader would swallow the end the watch waits for."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(message)s", stream=sys.stderr)
    try:
        spec = msgspec.json.decode(_read_line(0), type=WorkerSpec)
        _die_with_parent()
        pair = load_pair(spec)
    except (LoadError, msgspec.MsgspecError) as error:
        reported = error if isinstance(error, LoadError) else ConfigurationError(f"not a worker spec: {error}")
        print(json.dumps(reported.problem()), flush=True)
        return EXIT_LOAD_FAILED
    try:
        asyncio.run(serve(pair, spec.socket))
    except WorkerLost as error:
        logging.getLogger("rl_onoff.worker").error("%s: this worker ends", error.detail)
        return EXIT_LOST
    finally:
        Path(spec.socket).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
