"""`rl-onoff distributions --top-k`: what its results and its summary say of where they came from."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from rl_onoff import AsyncClient
from rl_onoff.cli import app
from rl_onoff.runs import Distributions, read_results
from rl_onoff.runs.shards import FullRows

runner = CliRunner()
MODELS = {
    "models": [{"name": "base", "pair": "p", "side": "a", "backend": "hf", "state": "ready", "fingerprint": "f"}],
    "pairs": [{"name": "p", "a": "base", "b": "rl"}],
}
ITEM = {
    "token_ids": [1],
    "tokens": ["x"],
    "token_logprobs": [-0.5],
    "top": [{"ids": [1], "values": [-0.5]}],
    "entropy": [0.1],
    "tail": [0.2],
}


class Service:
    """Answers from one `device`; does not tell where rows come from unless it `tells`."""

    device, tells = "cpu", True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            return httpx.Response(200, json=MODELS)
        merge = json.loads(request.content)["merge_eos"]
        provenance = {
            "version": "0",
            "backend": "hf",
            "side": "a",
            "fingerprint": "f",
            "dtype": "float32",
            "device": self.device,
            "vocab_size": 3,
            "logit_columns": [3, 4],
            "temperature": 1.0,
            "merge_eos": merge,
            "merged_ids": [0, 2] if merge else [],
            "prompt_mode": "shared",
        }
        cache = {"hit_rows": 0, "computed_rows": 1}
        answer = {"id": "d", "model": "base", "vocab_size": 3, "kind": "logprobs", "items": [ITEM], "cache": cache}
        return httpx.Response(200, json=answer | ({"provenance": provenance} if self.tells else {}))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    answers = Service()
    monkeypatch.setattr(
        "rl_onoff.cli.dataset.AsyncClient", partial(AsyncClient, transport=httpx.MockTransport(answers))
    )
    return answers


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Into the folder `run`."""
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"id": f"r{i}", "prompt": "q", "solution": "s"}) + "\n" for i in range(5)))
    return ["distributions", "-d", str(data), "-m", "base", "--top-k", "1", "-o", str(tmp_path / "run")]


def summary(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return found


def test_results_say_what_they_were_computed_from(service: Service, command: list[str], tmp_path: Path) -> None:
    command = [*command, "--merge-eos"]
    assert runner.invoke(app, [*command, "--limit", "2"]).exit_code == 0
    first, second = (each["provenance"] for each in read_results(tmp_path / "run"))
    assert (first["merged_ids"], first["device"], first["logit_columns"]) == ([0, 2], "cpu", [3, 4])
    assert first == second == summary(tmp_path)["provenance"]
    service.device = "cuda:0"
    result = runner.invoke(app, [*command, "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "results of 2 origins, which differ in device: see provenances in summary.json" in result.stderr
    found = summary(tmp_path)
    assert found["provenance"] is None
    assert [(each["device"], each["results"]) for each in found["provenances"]] == [("cpu", 2), ("cuda:0", 3)]


def test_results_of_unknown_origin_are_told_from_others(service: Service, command: list[str], tmp_path: Path) -> None:
    """As those of older services and runs are."""
    service.tells = False
    assert runner.invoke(app, [*command, "--limit", "2"]).exit_code == 0
    assert "provenance" not in next(read_results(tmp_path / "run"))
    assert summary(tmp_path)["provenance"]["device"] is None
    service.tells = True
    result = runner.invoke(app, [*command, "--resume"])
    assert "results of 2 origins, which differ in " in result.stderr
    found = summary(tmp_path)["provenances"]
    assert [(each["device"], each["results"]) for each in found] == [(None, 2), ("cpu", 3)]


def test_a_run_from_before_prompt_modes_and_merged_tokens_goes_on(
    service: Service, command: list[str], tmp_path: Path
) -> None:
    assert runner.invoke(app, [*command, "--limit", "2"]).exit_code == 0
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["settings"] = {"top_k": 1, "kind": "logprobs", "temperature": 1.0}
    path.write_text(json.dumps(manifest))
    assert runner.invoke(app, [*command, "--resume"]).exit_code == 0
    assert runner.invoke(app, [*command, "--resume", "--merge-eos"]).exit_code == 2


@pytest.mark.parametrize("task", [Distributions("base"), FullRows("base")])
def test_settings_that_came_later_are_told_where_they_are_not_the_default(task: Distributions | FullRows) -> None:
    later = {"prompt_mode": "per_model", "merge_eos": True}
    assert not task.settings().keys() & later.keys()
    assert replace(task, prompt_mode="per_model", merge_eos=True).settings() == task.settings() | later
