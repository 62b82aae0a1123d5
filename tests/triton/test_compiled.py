"""What the interpreter takes a GPU's compiler need not: every loop is compiled to the binaries of real GPUs, unrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("target", ["80", "90", "gfx942"])
def test_the_loops_compile_for(target: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton.compile_all", target],
        env=environment | {"TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    binaries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(binaries) == 6
    assert all(size > 5_000 for binary in binaries for size in binary["bytes"])
