"""A report of runs that the commands made, over the demo pair."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running_service import running

pytestmark = pytest.mark.slow

PROBLEMS = Path(__file__).resolve().parents[2] / "demo" / "problems.jsonl"
METRIC = "exact_match:after=A:"
STUDY = f"""
data: {PROBLEMS}
limit: 3
n: 2
sampling: {{max_tokens: 60}}
metrics: ["{METRIC}"]
measures: [entropy_a, rank_of_b_in_a]
directions: [a_to_b, b_to_a]
policies: [{{kind: divergence, on: 0.1}}]
"""


def command(*arguments: object) -> str:
    program = [sys.executable, "-m", "rl_onoff.cli", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_and_a_divergence_run_end_in_a_report(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    sweep, divergence = tmp_path / "sweep", tmp_path / "divergence"
    with running(tmp_path, {}) as service:
        service.wait_for(lambda: "serving on" in service.log.read_text(), 120)
        command("sweep", tmp_path / "study.yaml", "-o", sweep, "--url", service.url)
        run = ("divergence", "-d", sweep / "a_alone", "-o", divergence, "--measure", "js", "--measure", "entropy_a")
        command(*run, "--noise-floor", "--url", service.url)
    printed = command("report", sweep, divergence, "-o", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert printed.strip() == str(tmp_path / "report" / "report.html")

    tables = tmp_path / "report" / "tables"
    with (tables / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (sweep / "conditions.csv").open(newline="") as file:
        conditions = list(csv.DictReader(file))
    assert len(rows) == len(conditions) == 6
    for row, condition in zip(rows, conditions, strict=True):
        for name in (METRIC, f"{METRIC} low", f"{METRIC} high"):
            assert float(row[name]) == pytest.approx(float(condition[name]))
        share = float(condition["share"])
        expected = 1 - share if condition["direction"] == "b_to_a" else share
        assert float(row["B's tokens"]) == pytest.approx(expected)
    figures = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert figures >= {"accuracy", "pass-at-k", "divergence", "position", "entropy", "shifts", "tokens", "run-lengths"}
    assert page.count("<svg ") == len(figures)
    assert "noise floor: pass shape" in page
    records = json.loads(page.partition('id="records">')[2].partition("</script>")[0])
    assert {record["condition"] for record in records} == {"A alone", "divergence on=0.1", "B alone"}
    assert all("".join(record["tokens"]).startswith(record["text"]) for record in records)
