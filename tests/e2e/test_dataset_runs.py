"""Runs over a data set that go wrong: killed, or left alone by their service. The end is that of a run in peace."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_onoff.cli.child import choose_port
from tests.e2e.running_service import RunningService, running, table_pair

pytestmark = pytest.mark.slow

ROWS = 150
#: Per command. Each starts the program anew, which takes most of the time.
KILLS = 10


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    with running(folder, {"pairs": [table_pair(folder)]}) as service:
        yield service.url


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [
        {"id": f"r{i}", "prompt": "ab"[i % 2], "solution": "bcd"[: 1 + i % 3], "reference": "b"} for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(command: list[str], url: str, data: Path, folder: Path) -> subprocess.Popen[str]:
    arguments = [*command, "--url", url, "--data", str(data), "--output", str(folder), "--resume", "--concurrency", "3"]
    program = [sys.executable, "-m", "rl_onoff.cli", *arguments]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err


def results(folder: Path) -> list[dict[str, Any]]:
    """All lines, which have to be whole, in the order of their keys."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_bytes().splitlines()]
    return sorted(found, key=lambda record: (record["id"], record.get("sample", 0)))


def size(folder: Path) -> int:
    try:
        return (folder / "results.jsonl").stat().st_size
    except FileNotFoundError:
        return 0


def kill_somewhere(process: subprocess.Popen[str], folder: Path, after: int, chance: random.Random) -> bool:
    """Kill it a moment after it has written `after` bytes, be it in the middle of a line. False when it was faster."""
    before = size(folder)
    while process.poll() is None and size(folder) < before + after:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.01))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["sample", "switch"])
def test_a_run_killed_at_any_moment_ends_as_one_in_peace(url: str, data: Path, tmp_path: Path, name: str) -> None:
    command = {
        "sample": ["sample", "--model", "base", "--n", "2", "--metric", "exact_match", "--max-tokens", "20"],
        "switch": ["switch", "--on", "0.05", "--metric", "length", "--max-tokens", "20", "--record", "entropy_a"],
    }[name]
    finish(start(command, url, data, tmp_path / "peace"))
    whole = size(tmp_path / "peace")

    chance = random.Random(8)
    killed = 0
    for attempt in range(KILLS):
        after = chance.randrange(0, whole // KILLS) if attempt else 0  # the first before there is anything
        killed += kill_somewhere(start(command, url, data, tmp_path / "war"), tmp_path / "war", after, chance)
    assert killed == KILLS
    finish(start(command, url, data, tmp_path / "war"))

    assert results(tmp_path / "war") == results(tmp_path / "peace")
    assert len(results(tmp_path / "war")) == (2 * ROWS if name == "sample" else ROWS)
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("war", "peace")]
    assert summaries[0] == summaries[1]


def test_shards_of_a_run_that_was_killed(url: str, data: Path, tmp_path: Path) -> None:
    command = ["distributions", "--model", "tuned"]
    process = start(command, url, data, tmp_path / "war")
    while process.poll() is None and not (tmp_path / "war" / "manifest.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "war" / "shard-00000.tmp").write_bytes(b"half of one")
    for run in ("war", "peace"):
        finish(start(command, url, data, tmp_path / run))

    index = results(tmp_path / "war")
    assert [record["id"] for record in index] == sorted(f"r{i}" for i in range(ROWS))
    for record in index:
        values = load_file(tmp_path / "war" / record["shard"])[f"{record['id']}.values"]
        assert list(values.shape) == record["shape"]
        (peace,) = (each for each in results(tmp_path / "peace") if each["id"] == record["id"])
        np.testing.assert_array_equal(values, load_file(tmp_path / "peace" / peace["shard"])[f"{record['id']}.values"])


def test_another_configuration_is_2_and_a_second_writer_75(url: str, data: Path, tmp_path: Path) -> None:
    command = ["sample", "--model", "base", "--max-tokens", "5"]
    first = start(command, url, data, tmp_path)
    while first.poll() is None and not size(tmp_path):
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    try:
        assert "another process writes to" in finish(start(command, url, data, tmp_path), 75)
    finally:
        first.send_signal(signal.SIGCONT)
    finish(first)
    before = (tmp_path / "results.jsonl").read_bytes()
    said = finish(start([*command, "--temperature", "0.5"], url, data, tmp_path), 2)
    assert "settings.sampling.temperature was null, now 0.5" in " ".join(said.split())
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_run_waits_for_a_service_that_is_started_anew(data: Path, tmp_path: Path) -> None:
    document = {"port": choose_port(0), "pairs": [table_pair(tmp_path)]}
    command = ["sample", "--model", "base", "--n", "4", "--max-tokens", "60"]
    with running(tmp_path, document) as service:
        finish(start(command, service.url, data, tmp_path / "peace"))
        run = start(command, service.url, data, tmp_path / "war")
        while run.poll() is None and not size(tmp_path / "war"):
            time.sleep(0.001)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
    assert run.poll() is None
    with running(tmp_path, document) as again:
        finish(run)
        assert httpx.get(again.url + "/health").status_code == 200
    assert results(tmp_path / "war") == results(tmp_path / "peace")


_STUDY = """
limit: 30
sampling: {max_tokens: 12}
metrics: [length]
seeds: [3, 4]
policies:
  - {kind: divergence, on: [0.01, 0.2]}
  - {kind: top_prob, budget: 0.3}
"""


def test_a_study_that_is_killed_ends_as_one_in_peace(url: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"data: {data}\n{_STUDY}")

    def start_study(name: str) -> subprocess.Popen[str]:
        arguments = ["sweep", str(file), "--url", url, "--output", str(tmp_path / name), "--resume"]
        program = [sys.executable, "-m", "rl_onoff.cli", *arguments]
        return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    finish(start_study("peace"))
    chance = random.Random(9)
    for after in (0, 1, 500):
        assert kill_somewhere(start_study("war"), tmp_path / "war", after, chance)
    finish(start_study("war"))
    tables = [(tmp_path / name / "conditions.csv").read_text() for name in ("war", "peace")]
    assert tables[0] == tables[1]
    found = results(tmp_path / "war")
    names = ("divergence-on=0.01", "divergence-on=0.2", "top_prob-budget=0.3")
    policies = [f"a_to_b-{name}{control}" for name in names for control in ("", "-control")]
    assert [record["id"] for record in found] == sorted(["a_alone", "b_alone", *policies])
    share = {record["id"]: record["share"] for record in found}
    assert (share["a_alone"], share["b_alone"]) == (0.0, 1.0)
    for record in found:
        assert len(results(tmp_path / "war" / record["id"])) == 60
        assert set(record["by_seed"]) == {"3", "4"}
        if "calibration" in record:
            assert record["calibration"]["reached"] == record["share"]
            assert record["summary"]["sharing"]["whole"] == 60  # its pass wrote them
        if record["control_of"]:
            assert record["policy"] == {"kind": "random", "rate": share[record["control_of"]]}

    file.write_text(file.read_text().replace("0.2", "0.3"))
    assert "settings.policies" in finish(start_study("war"), 2)


_METRICS = """
from rl_onoff.metrics import metric

@metric("shouting", needs_reference=False)
def shouting(text, reference):
    return sum(map(str.isupper, text)) / len(text)

@metric("broken", needs_reference=False)
def broken(text, reference):
    return text.nothing
"""


def test_an_installed_package_adds_metrics_to_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site"
    (package / "own-1.0.dist-info").mkdir(parents=True)
    (package / "own.py").write_text(_METRICS)
    (package / "own-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (package / "own-1.0.dist-info" / "entry_points.txt").write_text(
        "[rl_onoff.metrics]\nshouting = own:shouting\nbroken = own:broken\nabsent = own:absent\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package))
    with running(tmp_path, {"pairs": [table_pair(tmp_path)]}) as service:
        _asks_for_its_metrics(service)


def _asks_for_its_metrics(service: RunningService) -> None:
    def ask(name: str) -> httpx.Response:
        body = {"model": "base", "prompt": "b", "sampling": {"max_tokens": 3, "seed": 1}, "metrics": [name]}
        return httpx.post(service.url + "/generate", json=body, timeout=30)

    assert ask("shouting").json()["metrics"] == {"shouting": 0.0}
    unknown = ask("shoutin").json()
    assert (unknown["status"], unknown["errors"][0]["field"]) == (422, "metrics.0")
    assert "Did you mean 'shouting'?" in unknown["errors"][0]["message"]
    for name, reason in (("broken", "the metric broken failed: AttributeError"), ("absent", "cannot be used")):
        answer = ask(name)
        assert (answer.status_code, answer.json()["retryable"]) == (500, False)
        assert reason in answer.json()["detail"]
