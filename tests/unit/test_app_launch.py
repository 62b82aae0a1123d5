"""The local launcher with children that do as they like."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.running_service import alive
from workers.launch.local import LocalWorker
from workers.wire import ModelSpec, WorkerSpec

SPEC = WorkerSpec(pair="p", backend="table", socket="s", a=ModelSpec("a"), b=ModelSpec("b"))


async def start(code: str) -> LocalWorker:
    return await LocalWorker.start(SPEC, (sys.executable, "-c", code))


async def test_the_spec_is_the_first_line_and_the_input_stays_open(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    worker = await start(f"import sys; open({str(seen)!r}, 'w').write(sys.stdin.readline()); sys.stdin.read()")
    while not seen.exists() or not seen.read_text():
        time.sleep(0.01)  # noqa: ASYNC251
    assert '"pair":"p"' in seen.read_text()
    assert alive(worker.pid)
    await worker.stop(1)
    assert await worker.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("noise\\n{\"detail\": \"no such model\"}\\n", {"detail": "no such model"}),
        ("noise\\n", None),
        ("[1]", None),
        ("{\"other\": 1}", None),
        ("", None),
    ],
)  # fmt: skip
async def test_the_problem_it_leaves(output: str, problem: dict[str, str] | None) -> None:
    worker = await start(f"import sys; print('{output}', end=''); sys.exit(3)")
    assert await worker.wait() == 3
    assert worker.problem == problem


async def test_one_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    worker = await start(
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    while not child.exists() or not child.read_text():
        time.sleep(0.01)  # noqa: ASYNC251
    await worker.stop(0.1)
    assert await worker.wait() == -signal.SIGKILL
    assert not alive(int(child.read_text()))


async def test_a_child_it_leaves_behind_goes_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    worker = await start(
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        f" stdout=subprocess.DEVNULL); open({str(child)!r}, 'w').write(str(p.pid))"
    )
    assert await worker.wait() == 0
    assert not alive(int(child.read_text()))
