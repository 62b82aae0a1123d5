"""`rl-onoff divergence` over a file says what one request with all of its items says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from rl_onoff import Client
from rl_onoff.cli import app
from rl_onoff.runs import read_results
from rl_onoff.runs.tokens import item_columns, summarise_divergence
from rl_onoff.statistics import summarise
from tests.e2e.running_service import running, table_pair

#: A excludes d except after "a", B excludes c there.
SOLUTIONS = ["ab", "abacab", "bac", "c", "dab", "bcabd", "a"]
MEASURES = ["js", "kl_ab", "delta_logp", "entropy_a", "topk_overlap:2"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    with running(folder, {"pairs": [table_pair(folder)]}) as service:
        yield service.url


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    rows = [{"id": f"r{i}", "prompt": "b", "solution": solution} for i, solution in enumerate(SOLUTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compared(url: str, data: Path, folder: Path, *more: str) -> dict[str, Any]:
    options = [option for name in MEASURES for option in ("--measure", name)]
    command = ["divergence", "--url", url, "-d", str(data), "-o", str(folder), "--concurrency", "1", *options, *more]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert json.loads(result.stdout) == summary
    return summary


def asked(url: str, solutions: list[str] = SOLUTIONS, **more: Any) -> dict[str, Any]:
    body = {"items": [{"prompt": "b", "solution": s} for s in solutions], "measures": MEASURES, **more}
    response = httpx.post(f"{url}/divergence", json=body, timeout=30)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def same(run: Any, answer: Any, path: str = "") -> None:
    """What a run says beside, and places, which it tells by the rows' ids, aside."""
    if isinstance(answer, dict):
        assert run.keys() - {"percentiles_from"} == answer.keys(), path
        for name, value in answer.items():
            same(run[name], value, f"{path}.{name}")
    elif isinstance(answer, list):
        assert len(run) == len(answer), path
        for index, (one, other) in enumerate(zip(run, answer, strict=True)):
            same(one, other, f"{path}.{index}")
    elif isinstance(answer, float):
        assert run == pytest.approx(answer, rel=1e-9, abs=1e-12), path
    elif path.endswith(".max_at.item"):
        assert run == f"r{answer}", path
    else:
        assert run == answer, path


@pytest.mark.parametrize("units", ["nats", "bits"])
def test_a_run_says_what_an_answer_says(url: str, data: Path, tmp_path: Path, units: str) -> None:
    run = compared(url, data, tmp_path / "r", "--units", units, "--noise-floor")
    answer = asked(url, units=units, noise_floor=True)
    assert (run.pop("results"), run.pop("failed"), run.pop("bad_rows"), run.pop("first_bad_rows")) == (7, 0, 0, [])
    assert run["measures"]["kl_ab"]["infinite"] > 0
    assert run["measures"]["js"]["clustered_stderr"] > 0
    floor, wanted = run.pop("noise_floor"), answer["noise_floor"]
    assert floor.keys() == wanted.keys()
    for kind, measures in wanted.items():
        assert floor[kind].keys() == measures.keys()
        for name, found in measures.items():
            pooled = floor[kind][name]
            if not isinstance(found, dict):
                same(pooled, found, name)
                continue
            assert pooled.keys() == found.keys() - {"percentiles"}  # a run's are pooled from those of its items
            told = {each for each, value in found.items() if value is not None} - {"percentiles"}
            same({each: pooled[each] for each in told}, {each: found[each] for each in told}, f"{kind}.{name}")
    same(run.pop("provenance"), answer["provenance"])
    same(run, answer["summary"])


def test_a_run_that_was_resumed_says_the_same(url: str, data: Path, tmp_path: Path) -> None:
    first = compared(url, data, tmp_path / "r", "--limit", "3")
    assert first["items"] == 3
    assert compared(url, data, tmp_path / "r", "--resume") == compared(url, data, tmp_path / "whole")


def test_results_are_what_a_summary_is_made_of(url: str, data: Path, tmp_path: Path) -> None:
    compared(url, data, tmp_path / "r")
    records = list(read_results(tmp_path / "r"))
    made = summarise([item_columns(record) for record in records])
    assert made.measures["js"].statistics.mean == pytest.approx(summarise_divergence(records)["measures"]["js"]["mean"])
    assert all(record["values"].keys() == set(MEASURES) == record["summary"]["measures"].keys() for record in records)
    assert records[3]["logprobs_b"] == [None]
    assert records[3]["logprobs_a"] == [pytest.approx(math.log(0.1))]
    assert records[0]["columns"].keys() == {"top1_agree", "top_prob_a", "rank_of_b_in_a"}


def test_infinities_keep_their_sign(url: str, data: Path, tmp_path: Path) -> None:
    answer = asked(url)
    first, second = answer["items"][3], answer["items"][4]
    assert (first["values"]["delta_logp"], first["infinite"]["delta_logp"]) == ([None], [0])
    assert first["negative_infinite"] == {"delta_logp": [0]}  # kl_ab is infinite there too, and positive
    assert second["infinite"]["delta_logp"] == [0]
    assert "delta_logp" not in second["negative_infinite"]
    with Client(url) as client:
        items = client.divergence([{"prompt": "b", "solution": s} for s in SOLUTIONS], measures=["delta_logp"]).items
    assert [item.column("delta_logp")[0] for item in items[3:5]] == [-math.inf, math.inf]
    values = np.concatenate([item.column("delta_logp") for item in items])
    run = compared(url, data, tmp_path / "r")["measures"]["delta_logp"]
    assert (run["infinite"], run["min"], run["max"]) == (int(np.isinf(values).sum()), None, None)
    median = np.percentile(values, 50, method="inverted_cdf")
    assert run["percentiles"]["50"] == pytest.approx(median)
    assert run["percentiles"]["1"] is None
    # Without the positive ones the largest value is finite: it is not one of the negative infinities.
    below = asked(url, ["c", "a"])["summary"]["measures"]["delta_logp"]
    assert (below["min"], below["max"]) == (None, pytest.approx(math.log(0.8)))


def test_what_is_printed(url: str, data: Path, tmp_path: Path) -> None:
    command = ["divergence", "--url", url, "-d", str(data), "-o", str(tmp_path / "r"), "--measure", "js"]
    said = CliRunner().invoke(app, [*command, "--noise-floor"]).stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    js, top1 = summary["measures"]["js"], summary["top1"]
    assert f"js: mean {js['mean']:.4g} ± {js['clustered_stderr']:.2g}, median" in said
    assert f"same best token: {100 * top1['value']:.2f}% ± {100 * top1['clustered_stderr']:.2f}%" in said
    assert "perplexity: A infinite, B infinite, B/A infinite, B - A infinite" in said
    assert f"{summary['positions']} tokens of 7 items; ± one standard error, by item" in said
    assert "noise floor, bfloat16 logits, js: mean" in said
