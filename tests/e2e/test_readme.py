"""What the README and docs/studies.md say to type works: requests, commands, programs, on the demo pair."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_onoff.cli.child import choose_port, running_service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
SHOWN_URL = "http://127.0.0.1:8000"

pytestmark = pytest.mark.slow


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service(ROOT, choose_port(0)) as service:
        service.wait_ready()
        yield service.url


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_requests(url: str, tmp_path: Path) -> None:
    (block,) = (block for block in blocks("bash") if "curl" in block)
    script = block.replace(SHOWN_URL, url).replace("curl -s", "curl --fail-with-body -s")
    out = run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
    for expected in ('"finish_reason":"stop"', '"top":[{"ids":', '"kl_ab":[', "event: switch", "event: done"):
        assert expected in out
    assert (tmp_path / "rows.safetensors").stat().st_size > 1000


def test_the_program(url: str, tmp_path: Path) -> None:
    (program,) = blocks("python")
    out = run([sys.executable, "-c", program.replace(SHOWN_URL, url)], tmp_path)
    assert "' guess'" in out
    assert re.search(r"\(13, \d+\) float32", out)
    assert "[b]" in out
    assert re.search(r"^ [ab]+ 0\.\d+$", out, re.MULTILINE)


def test_the_command(url: str, tmp_path: Path) -> None:
    (line,) = (line for block in blocks("bash") for line in block.splitlines() if "rl-onoff switch" in line)
    command = line.replace(".venv/bin/rl-onoff", f"{sys.executable} -m rl_onoff.cli").replace(
        "switch", f"switch --url {url}", 1
    )
    assert "A: " in run(["bash", "-c", command], tmp_path)


@pytest.mark.parametrize("text", [README, STUDIES], ids=["README", "studies"])
def test_the_commands_over_a_data_set(url: str, tmp_path: Path, text: str) -> None:
    (block,) = (block for block in blocks("bash", text) if "rl-onoff sample" in block)
    program = f"{sys.executable} -m rl_onoff.cli"
    script = re.sub(r"^(\.venv/bin/)?rl-onoff", program, block, flags=re.MULTILINE).replace("--limit 100", "--limit 3")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    run(["bash", "-euo", "pipefail", "-c", f"export RL_ONOFF_URL={url}\n{script}"], tmp_path)
    for folder in re.findall(r"-o (runs/\S+)", block):
        assert (tmp_path / folder / "summary.json").exists()


def test_the_sweep(url: str, tmp_path: Path) -> None:
    (study,) = blocks("yaml", STUDIES)
    (line,) = (each for each in blocks("bash", STUDIES) if "sweep study.yaml" in each)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "study.yaml").write_text(study.replace("limit: 50", "limit: 2"), encoding="utf-8")
    command = line.replace("rl-onoff", f"{sys.executable} -m rl_onoff.cli").strip()
    run(["bash", "-c", f"{command} --url {url}"], tmp_path)
    assert len((tmp_path / "runs/sweep/conditions.csv").read_text().splitlines()) == 1 + 2 + 2 * 3 * 2


def test_the_program_over_a_data_set(url: str, tmp_path: Path) -> None:
    (program,) = (block for block in blocks("python", STUDIES) if "asyncio.run" in block)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    out = run([sys.executable, "-c", program.replace(SHOWN_URL, url).replace("limit=20", "limit=3")], tmp_path)
    assert "'problems': 3" in out


def test_the_configuration(tmp_path: Path) -> None:
    from app.config import load

    (document,) = blocks("yaml")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "models.yaml").write_text(document, encoding="utf-8")
    (pair,) = load(tmp_path / "models.yaml").pairs
    assert (pair.model_a, pair.model_b) == ("base", "rl")
    assert Path(pair.b.path or "").samefile(ROOT / "demo" / "rl")
