"""The installed package alone: the wheel in an empty environment, and nothing heavy with it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

INSPECT = """
import importlib.util, sys
import rl_onoff, rl_onoff.client, rl_onoff.cli, rl_onoff.tensors
heavy = ["torch", "transformers", "fastapi", "redis", "aiohttp", "msgspec", "scipy", "app", "workers"]
assert not [name for name in heavy if name in sys.modules], "imported"
assert not [name for name in heavy if importlib.util.find_spec(name)], "installed"
assert rl_onoff.Client and rl_onoff.__version__
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RL_ONOFF"))}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("packaging")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("rl_onoff-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    # The pip of this environment installs into the empty one: it needs none of its own.
    target = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", target, "install", "--quiet", wheel, cwd=folder)
    return target.parent


def test_the_sdk_imports_without_the_service_and_its_dependencies(environment: Path, tmp_path: Path) -> None:
    run(environment / "python", "-c", INSPECT, cwd=tmp_path)


def test_the_command_runs(environment: Path, tmp_path: Path) -> None:
    out = run(environment / "rl-onoff", "--help", cwd=tmp_path)
    assert all(command in out for command in ("serve", "demo", "switch", "check-pair"))


@pytest.mark.parametrize(
    ("command", "said"),
    [("serve", "pip install -e '.[server,hf]'"), ("demo", "run this in a checkout")],
)
def test_what_needs_a_checkout_says_so(environment: Path, tmp_path: Path, command: str, said: str) -> None:
    done = subprocess.run(
        [environment / "rl-onoff", command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
