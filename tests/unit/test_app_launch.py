"""The local launcher with children that do as they like."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from app.pair_config import PairConfig
from app.services.launch import has_the_machine
from rl_onoff.errors import LoadError
from tests.e2e.running_service import alive
from workers.launch.local import LocalWorker
from workers.wire import ModelSpec, WorkerSpec

SPEC = WorkerSpec(pair="p", backend="table", socket="s", a=ModelSpec("a"), b=ModelSpec("b"))


async def start(code: str) -> LocalWorker:
    return await LocalWorker.start(SPEC, (sys.executable, "-c", code))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def written(path: Path) -> str:
    async with asyncio.timeout(5):
        while not (text := read(path)):
            await asyncio.sleep(0.01)
    return text


async def gone(pid: int) -> None:
    async with asyncio.timeout(2):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_the_spec_is_the_first_line_and_the_input_stays_open(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    worker = await start(f"import sys; open({str(seen)!r}, 'w').write(sys.stdin.readline()); sys.stdin.read()")
    assert '"pair":"p"' in await written(seen)
    assert alive(worker.pid)
    await worker.stop(1)
    assert await worker.wait() == -signal.SIGTERM


async def test_secrets_stay_with_the_service_and_what_the_operator_set_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_ONOFF_API_KEYS", "a-key-of-the-service")
    monkeypatch.setenv("RL_ONOFF_CACHE_URL", "redis://user:password@host")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    seen = tmp_path / "seen"
    worker = await start(f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))")
    environment = await written(seen)
    assert await worker.wait() == 0
    assert "a-key-of-the-service" not in environment
    assert "password" not in environment
    assert "'OMP_WAIT_POLICY': 'ACTIVE'" in environment


@pytest.mark.parametrize(
    ("alone", "chosen", "quota", "spins"),
    [
        (True, {}, None, True),
        (True, {}, "max 100000", True),
        (True, {}, "400000 100000", False),
        (False, {}, None, False),
        (True, {"OMP_WAIT_POLICY": "PASSIVE"}, None, False),
    ],
)
async def test_threads_that_wait_spin_a_little_where_nothing_else_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool, chosen: dict[str, str], quota: str | None, spins: bool
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr("workers.launch.local._QUOTA", tmp_path / "cpu.max")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    seen = tmp_path / "seen"
    code = f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))"
    worker = await LocalWorker.start(SPEC, (sys.executable, "-c", code), alone=alone)
    environment = await written(seen)
    assert await worker.wait() == 0
    assert ("'GOMP_SPINCOUNT'" in environment) == spins


def test_a_worker_has_the_machine_to_itself_where_it_is_the_only_one_here() -> None:
    def pair(name: str, **more: Any) -> PairConfig:
        return PairConfig(name=name, a={"path": "a"}, b={"path": "b"}, **more)  # type: ignore[arg-type]

    one, two = pair("p"), pair("p", replicas=2)
    away = pair("q", launch="remote", agents=["host:8300"])
    assert has_the_machine([one])
    assert has_the_machine([one, away])
    assert not has_the_machine([one, pair("q")])
    assert not has_the_machine([two])
    assert not has_the_machine([away])
    assert not has_the_machine([pair("p", backend="vllm")])


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
    await written(child)
    await worker.stop(0.1)
    assert await worker.wait() == -signal.SIGKILL
    await gone(int(child.read_text()))


async def test_a_child_it_leaves_behind_goes_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    worker = await start(
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(child)!r}, 'w').write(str(p.pid))"
    )
    assert await asyncio.wait_for(worker.wait(), 5) == 0
    await gone(int(child.read_text()))


async def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cannot run .*/nowhere/python: No such file"):
        await LocalWorker.start(SPEC, (str(tmp_path / "nowhere/python"), "-m", "workers"))
