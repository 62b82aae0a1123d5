"""What malloc does with freed memory, by the pages the system had to hand out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from workers.memory import keep_freed_memory

print(int(keep_freed_memory() if sys.argv[1] == "keep" else False))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        [np.ones(1 << 23) for _ in range(2)]  # 64 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    faults()
    print(faults())

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def run(how: str, **environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_is_taken_from_the_system_once() -> None:
    kept, faults = run("keep")
    assert kept
    assert faults < 200
    assert run("leave")[1] > 10 * faults


def test_the_operators_settings_stay() -> None:
    assert run("keep", MALLOC_ARENA_MAX="4")[0] is False
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=4")[0] is False
