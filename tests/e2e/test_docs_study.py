"""docs/study_example.py runs as it stands, on the demo pair."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from rl_onoff.metrics import registry
from tests.e2e.running_service import running

pytestmark = pytest.mark.slow


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, {}) as service:
        monkeypatch.setenv("RL_ONOFF_URL", service.url)
        monkeypatch.setenv("ROWS", "6")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))  # what it adds is not for others
        found = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "study_example.py"))
    summaries = found["summaries"]
    assert [summary["results"] for summary in summaries.values()] == [12, 12, 12]
    right = {name: summary["metrics"]["exact_match:after=A:"]["value"] for name, summary in summaries.items()}
    assert right["a"] < right["b"]
    assert 0 < summaries["switched"]["b_fraction"] < 0.2
    assert summaries["b"]["metrics"]["steps"]["value"] > 1
    assert found["attribution"]["undone"] > 0
    printed = capsys.readouterr().out
    assert " nats at " in printed
    assert "changed the text" in printed
