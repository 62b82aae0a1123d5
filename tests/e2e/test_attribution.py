"""Switches undone one at a time, over a run of the table pair."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_onoff import Client
from rl_onoff.errors import DataError
from rl_onoff.runs.attribution import SwitchedRow, SwitchedRun, first_difference, summarise_attribution
from tests.e2e.running_service import running, table_pair

MOST = 3


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    with running(folder, {"pairs": [table_pair(folder, endless=True)]}) as service:
        yield service.url


def command(url: str, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "rl_onoff.cli", *arguments, "--url", url]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def results(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda record: (record["id"], record["sample"]))


@pytest.mark.slow
def test_a_switch_is_undone_by_a_schedule_without_it(url: str, tmp_path: Path) -> None:
    data, run, out = tmp_path / "d.jsonl", tmp_path / "run", tmp_path / "out"
    data.write_text("".join(json.dumps({"id": i, "prompt": "ab"[i % 2], "reference": "bc"}) + "\n" for i in range(10)))
    options = ["--on", "0.05", "--n", "2", "--max-tokens", "20", "--stop", "bbb", "--metric", "length"]
    finish(command(url, "switch", "-d", str(data), "-o", str(run), *options))

    arguments = ["attribute", str(run), "--most", str(MOST), "--metric", "length", "--metric", "exact_match", "--json"]
    killed = command(url, *arguments, "-o", str(out))
    while killed.poll() is None and not ((out / "results.jsonl").exists() and (out / "results.jsonl").stat().st_size):
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = len(results_whole(out))
    assert before > 0
    told = json.loads(finish(command(url, *arguments, "-o", str(out), "--resume"))[0])
    finish(command(url, *arguments, "-o", str(tmp_path / "peace")))
    assert results(out) == results(tmp_path / "peace")

    found = results(out)
    rows = {row.id: row for row in SwitchedRun(run)}
    keys = [(record["id"], record["sample"]) for record in found]
    assert keys == [
        (row.id, number) for row in sorted(rows.values(), key=lambda r: r.id) for number, _ in row.undone(MOST)
    ]
    with Client(url) as client:
        for record in found:
            same_as_one_request(client, rows[record["id"]].record, record)
    assert any(record["first_difference"] is None for record in found)
    assert any(record["shared"] for record in found)
    assert told["undone"] == len(found)
    assert told["left_out"] == told["takeovers"] - told["undone"] > 0
    assert told["changed_text"] == sum(record["first_difference"] is not None for record in found)
    lowered = sum(record["change"]["length"] < 0 for record in found)
    assert told["metrics"]["length"]["lowered"] == lowered > 0
    lines = list(csv.DictReader((out / "switches.csv").read_text().splitlines()))
    assert len(lines) == len(found)
    assert "exact_match change" in lines[0]

    _, err = finish(command(url, "attribute", str(out), "-o", str(tmp_path / "no")), 2)
    assert "attribute takes one of switch" in " ".join(err.split())
    _, err = finish(command(url, "attribute", str(run), "-o", str(out), "--most", "1", "--resume"), 2)
    assert "settings.most was 3, now 1" in " ".join(err.split())


def results_whole(folder: Path) -> list[str]:
    return [line for line in (folder / "results.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def same_as_one_request(client: Client, source: dict[str, Any], record: dict[str, Any]) -> None:
    """A generation that was given nothing, by the schedule without the switch."""
    undone = range(record["start"], record["end"])
    assert all(source["leads"][at] == "b" for at in undone)
    assert record["start"] == 0 or source["leads"][record["start"] - 1] == "a"
    kept = [at for at, lead in enumerate(source["leads"]) if lead == "b" and at not in undone]
    made = client.switch_generate(
        prompt_ids=source["prompt_ids"],
        policy={"kind": "schedule", "positions": kept},
        sampling={"max_tokens": 20, "stop": ["bbb"], "seed": source["seed"]},
    )
    assert record["token_ids"] == made.token_ids
    assert record["leads"] == made.leads
    assert record["text"] == made.text
    assert record["finish_reason"] == made.finish_reason
    assert record["change"]["length"] == len(made.text) - len(source["text"])
    assert record["first_difference"] == first_difference(source["token_ids"], made.token_ids)


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [3]) == 0


def test_the_greatest_switches_are_undone_where_not_all_are() -> None:
    record = {"leads": "bbabaabbb", "divergences": [0.1, 9.0, 0.0, None, 0.0, 0.0, 0.4, 0.0, 0.0]}
    row = SwitchedRow("r#0", "here", record=record)
    assert [(each.start, each.end, each.value) for each in row.takeovers] == [(0, 2, 0.1), (3, 4, None), (6, 9, 0.4)]
    assert [number for number, _ in row.undone(3)] == [0, 1, 2]
    assert [number for number, _ in row.undone(2)] == [1, 2]
    assert [number for number, _ in row.undone(1)] == [1]


def test_a_run_of_another_command(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"identity": {"command": "sample"}}')
    with pytest.raises(DataError, match="is a run of sample"):
        SwitchedRun(tmp_path)


def test_a_smaller_limit_counts_its_own_generations_alone(tmp_path: Path) -> None:
    identity = {"command": "switch", "settings": {"metrics": []}, "models": []}
    (tmp_path / "manifest.json").write_text(json.dumps({"identity": identity}))
    runs = [{"id": name, "prompt_ids": [1], "leads": "ab", "divergences": [0.0, 1.0]} for name in "pq"]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in runs))
    undone = {"sample": 0, "first_difference": 1, "token_ids": [1, 2], "shared": 1, "change": {"length": 1.0}}
    found = [{"id": f"{name}#0", **undone} for name in "pq"]
    told = summarise_attribution(SwitchedRun(tmp_path, limit=1), found, MOST)
    assert (told["generations"], told["takeovers"], told["undone"], told["changed_text"]) == (1, 1, 1, 1)
    assert told["metrics"]["length"]["raised"] == 1
