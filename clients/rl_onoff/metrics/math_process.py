"""math-verify in a process of its own.

It guards itself by an alarm signal, which only a main thread has, and an expression such as 9^(9^9) may take all memory
and time of whoever simplifies it. Here that is a child, which is ended when it does not answer.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
from typing import IO, Final

from rl_onoff.errors import ConfigurationError

#: What importing sympy may take on a busy machine, and what one comparison may.
START_SECONDS: Final = 120.0
ANSWER_SECONDS: Final = 15.0
_READY: Final = b"ready\n"
_MEMORY_BYTES: Final = 4 << 30


class MathProcess:
    """Comparisons, one at a time; safe to share between threads. The child ends with us, or when it hangs."""

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._seconds = answer_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def equal(self, reference: str, text: str) -> bool:
        """Whether the two mean the same; False where that took too long."""
        with self._lock:
            child = self._child or self._start()
            self._child = child
            try:
                _pipe(child.stdin).write(json.dumps([reference, text]).encode() + b"\n")
                _pipe(child.stdin).flush()
                return _line(child, self._seconds) == b"true\n"
            except (BrokenPipeError, TimeoutError, EOFError):
                self._end(child)
                return False

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                self._end(self._child)

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "rl_onoff.metrics.math_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            ready = _line(child, START_SECONDS) == _READY
        except (TimeoutError, EOFError):
            ready = False
        if not ready:
            self._end(child)
            raise ConfigurationError("math-verify cannot be started: python -m rl_onoff.metrics.math_process")
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was still buffered has no reader
                    continue


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BrokenPipeError
    return pipe


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Its next line. Answers are a few bytes and come in one piece."""
    with selectors.DefaultSelector() as selector:
        selector.register(_pipe(child.stdout), selectors.EVENT_READ)
        if not selector.select(seconds):
            raise TimeoutError
        line = _pipe(child.stdout).readline()
    if not line:
        raise EOFError
    return line


def _serve() -> None:
    import resource

    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    out = sys.stdout.buffer
    out.write(_READY)
    out.flush()
    for line in sys.stdin.buffer:
        reference, text = json.loads(line)
        try:
            equal = bool(verify(_gold(parse, reference), parse(text)))
        except MemoryError:
            equal = False
        out.write(b"true\n" if equal else b"false\n")
        out.flush()


def _gold(parse: object, reference: str) -> object:
    """A reference may be a bare expression (`x^2`), which math-verify reads as LaTeX only between dollars."""
    call = parse if callable(parse) else None
    if call is None:
        raise TypeError("math_verify.parse is no function")
    bare = not any(mark in reference for mark in ("$", "\\boxed", "\\(", "\\["))
    return (call(f"${reference}$") if bare else None) or call(reference)


if __name__ == "__main__":
    _serve()
