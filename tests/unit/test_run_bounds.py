"""`rl-onoff bounds`: two stored runs of top-k rows against the measures of the whole rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rl_onoff import divergence
from rl_onoff.bounds import BOUNDED
from rl_onoff.cli import app
from rl_onoff.errors import DataError
from rl_onoff.runs import RunFolder, read_results
from rl_onoff.runs.bounds import TopKRuns, summarise_bounds

V, T = 40, 6
SETTINGS = {"top_k": 5, "kind": "logprobs", "temperature": 1.0}
DATA = {"source": "d.jsonl", "sha256": "0", "columns": {"prompt": "p"}}
PROVENANCE = {"version": "0", "backend": "hf", "device": "cpu", "dtype": "float32", "merged_ids": []}
runner = CliRunner()


def rows(seed: int, away: int = 0, temperature: float = 1.0) -> np.ndarray:
    """`[T, V]` in float64; with `away` near those without."""
    rng = np.random.default_rng(seed)
    logits = -1.5 * np.log(rng.permutation(V) + 1.0) + rng.normal(0, 0.7, (T, V))
    if away:
        logits += 0.4 * np.random.default_rng(1000 * away + seed).normal(size=(T, V))
    logits /= temperature
    found: np.ndarray = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found


def record(seed: int, away: int, k: int, temperature: float = 1.0) -> dict[str, Any]:
    """As `distributions --top-k` writes it: float32 values, best first, null for -inf."""
    kept = rows(seed, away, temperature).astype(np.float32)
    top = [
        {"ids": ids.tolist(), "values": [float(value) for value in row[ids]]}
        for row, ids in ((row, np.argsort(-row)[:k]) for row in kept)
    ]
    tokens = {"token_ids": list(range(T)), "tokens": [str(i) for i in range(T)]}
    return {"id": f"r{seed}", "sample": 0, **tokens, "top": top, "vocab_size": V}


def run(folder: Path, away: int, records: list[dict[str, Any]], **changes: Any) -> Path:
    identity = {
        "command": "distributions",
        "settings": SETTINGS | changes.pop("settings", {}),
        "models": [{"name": f"m{away}", "fingerprint": f"f{away}"}],
        "data": DATA,
    }
    with RunFolder.open(folder, identity | changes, resume=False) as opened:
        opened.append(records)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """In another order, with other k, and each with a row the other lacks."""
    a = run(tmp_path / "a", 0, [record(seed, 0, 5) for seed in (1, 2, 3)])
    b = run(tmp_path / "b", 1, [record(seed, 1, 9) for seed in (4, 3, 1)], settings={"top_k": 9})
    with RunFolder.open(b, json.loads((b / "manifest.json").read_text())["identity"], resume=True) as opened:
        opened.append([{"id": "r2", "sample": 0, "error": {"type": "context-exceeded", "detail": "too long"}}])
    return a, b


def test_the_measures_of_whole_rows_lie_between(runs: tuple[Path, Path]) -> None:
    found = list(TopKRuns(*runs).records())
    assert [(each["id"], "error" in each) for each in found] == [
        ("r1", False),
        ("r2", True),
        ("r3", False),
        ("r4", True),
    ]
    assert [each["error"]["detail"] for each in found if "error" in each] == [
        f"{runs[1]}: too long",
        f"{runs[0]} has no such row",
    ]
    wholes = dict.fromkeys(BOUNDED, 0.0)
    for each in (found[0], found[2]):
        seed = int(each["id"][1:])
        truth = divergence.compute(rows(seed), rows(seed, 1), BOUNDED)
        for name in BOUNDED:
            wholes[name] += float(truth[name].sum())
            assert (np.array(each["bounds"][name]["lower"]) <= truth[name]).all()
            if name.startswith("kl"):
                assert "upper" not in each["bounds"][name]
            else:
                assert (truth[name] <= np.array(each["bounds"][name]["upper"])).all()
        assert min(each["bounds"]["js"]["lower"]) > 0
    summary = summarise_bounds(found)
    assert (summary["results"], summary["failed"], summary["positions"]) == (2, 2, 2 * T)
    for name, means in summary["bounds"].items():
        assert means["lower"] <= wholes[name] / (2 * T) <= means.get("upper", np.inf)


def test_the_precision_is_that_of_the_rows_temperature(tmp_path: Path) -> None:
    """Divided by a temperature of 0.01 the rounding of log-probabilities is a hundred times as large."""
    found = []
    for temperature in (1.0, 0.01):
        settings = {"temperature": temperature}
        pair = [
            run(tmp_path / f"{side}{temperature}", side, [record(1, 0, 5, temperature)], settings=settings)
            for side in (0, 1)
        ]
        (each,) = TopKRuns(*pair).records()
        assert each["bounds"]["hellinger"]["lower"] == [0.0] * T
        found.append(max(each["bounds"]["hellinger"]["upper"]))
    assert found[1] > 5e-4


def test_the_command_writes_a_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = runner.invoke(app, ["bounds", *map(str, runs), "--measure", "js", "-o", str(output)])
    assert result.exit_code == 0, result.stderr
    assert "2 results, 2 rows without bounds: " in result.stderr
    assert "js: mean within" in result.stderr
    assert [each["id"] for each in read_results(output)] == ["r1", "r2", "r3", "r4"]
    summary = json.loads((output / "summary.json").read_text())
    assert summary == summarise_bounds(read_results(output))
    assert summary["bounds"].keys() == {"js"}
    identity = json.loads((output / "manifest.json").read_text())["identity"]
    assert [model["name"] for model in identity["models"]] == ["m0", "m1"]
    assert identity["settings"]["top_k"] == [5, 9]
    lines = runner.invoke(app, ["bounds", *map(str, runs)])
    assert [json.loads(line)["id"] for line in lines.stdout.splitlines()] == ["r1", "r2", "r3", "r4"]
    for option in ("--json", "--resume"):
        assert runner.invoke(app, ["bounds", *map(str, runs), option]).exit_code == 2


def test_a_run_of_bounds_that_was_cut_off_goes_on(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is there is not computed again."""
    command = ["bounds", *map(str, runs), "--measure", "js", "-o"]
    assert runner.invoke(app, [*command, str(tmp_path / "whole")]).exit_code == 0
    computed: list[str] = []
    compute = TopKRuns._bounds

    def cut_off(self: TopKRuns, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        if computed:
            raise KeyboardInterrupt
        return counted(self, a, b)

    def counted(self: TopKRuns, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        computed.append(a["id"])
        return compute(self, a, b)

    monkeypatch.setattr(TopKRuns, "_bounds", cut_off)
    cut = str(tmp_path / "cut")
    assert runner.invoke(app, [*command, cut]).exit_code != 0
    assert [each["id"] for each in read_results(cut)] == ["r1", "r2"]
    monkeypatch.setattr(TopKRuns, "_bounds", counted)
    assert "--resume goes on" in runner.invoke(app, [*command, cut]).stderr
    result = runner.invoke(app, [*command, cut, "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "2 results, 2 rows without bounds, 2 rows were there before" in result.stderr
    assert computed == ["r1", "r3"]
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_run_is_not_gone_on_with_once_one_of_the_two_has_more_rows(runs: tuple[Path, Path], tmp_path: Path) -> None:
    command = ["bounds", *map(str, runs), "-o", str(tmp_path / "out")]
    assert runner.invoke(app, command).exit_code == 0
    with RunFolder.open(runs[0], json.loads((runs[0] / "manifest.json").read_text())["identity"], resume=True) as a:
        a.append([record(4, 0, 5)])
    result = runner.invoke(app, [*command, "--resume"])
    assert result.exit_code == 2
    assert "results was" in result.stderr


def test_a_row_without_bounds_tells_what_each_run_says_of_it(tmp_path: Path) -> None:
    def refused(name: str, detail: str) -> dict[str, Any]:
        return {"id": name, "sample": 0, "error": {"type": "context-exceeded", "detail": detail}}

    a = run(tmp_path / "a", 0, [refused("both", "too long for A"), refused("a", "too long for A"), record(1, 0, 5)])
    b = run(tmp_path / "b", 1, [refused("both", "too long for B"), refused("b", "too long for B"), record(1, 1, 5)])
    found = {each["id"]: each.get("error") for each in TopKRuns(a, b).records()}
    assert found == {
        "both": {"type": "context-exceeded", "detail": f"{a}: too long for A; {b}: too long for B"},
        "a": {"type": "context-exceeded", "detail": f"{a}: too long for A; {b} has no such row"},
        "b": {"type": "row-missing", "detail": f"{a} has no such row; {b}: too long for B"},
        "r1": None,
    }


def test_runs_from_before_there_was_a_setting_go_with_those_that_have_it(tmp_path: Path) -> None:
    """Neither had a vocabulary's size in its results, nor where they came from."""
    old = {name: value for name, value in record(1, 0, 5).items() if name != "vocab_size"}
    a = run(tmp_path / "a", 0, [old])
    settings = {"prompt_mode": "shared", "merge_eos": False}
    b = run(tmp_path / "b", 1, [record(1, 1, 5) | {"provenance": PROVENANCE}], settings=settings)
    found = list(TopKRuns(a, b).records())
    assert "bounds" in found[0]
    summary = summarise_bounds(found)["provenance"]
    assert (summary["a_device"], summary["b_device"]) == (None, "cpu")
    with pytest.raises(DataError, match=r"settings\.merge_eos: False and True"):
        TopKRuns(a, run(tmp_path / "c", 1, [record(1, 1, 5)], settings={"merge_eos": True}))


def test_rows_in_which_other_tokens_were_merged_are_refused(tmp_path: Path) -> None:
    a, b = (
        run(tmp_path / str(side), side, [record(1, side, 5) | {"provenance": PROVENANCE | {"merged_ids": ids}}])
        for side, ids in enumerate(([2, 3], [2, 7]))
    )
    with pytest.raises(DataError, match="row r1 has other merged_ids"):
        list(TopKRuns(a, b).records())


def test_bounds_tell_where_the_rows_came_from(tmp_path: Path) -> None:
    a, b = (
        run(tmp_path / side, number, [record(seed, number, 5) | {"provenance": origin} for seed, origin in origins])
        for number, (side, origins) in enumerate(
            {
                "a": [(1, PROVENANCE), (2, PROVENANCE)],
                "b": [(1, PROVENANCE), (2, PROVENANCE | {"device": "cuda:0"})],
            }.items()
        )
    )
    result = runner.invoke(app, ["bounds", str(a), str(b), "-o", str(tmp_path / "out")])
    assert "results of 2 origins, which differ in b_device: see provenances in summary.json" in result.stderr
    (first, second) = read_results(tmp_path / "out")
    assert (first["provenance"]["b_device"], second["provenance"]["b_device"]) == ("cpu", "cuda:0")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["provenance"] is None
    assert [each["results"] for each in summary["provenances"]] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": {"temperature": 0.5}}, r"settings\.temperature: 1\.0 and 0\.5"),
        ({"settings": {"prompt_mode": "per_model"}}, r"settings\.prompt_mode: 'shared' and 'per_model'"),
        ({"settings": {"kind": "probs"}}, "holds probs"),
        ({"settings": {"format": "safetensors"}}, "rows in shards"),
        ({"settings": {"top_k": None}}, "rows in shards"),
        ({"data": DATA | {"sha256": "1"}}, r"data\.sha256"),
        ({"command": "sample"}, "a run of 'sample'"),
    ],
)
def test_runs_that_are_not_about_the_same_rows_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    a = run(tmp_path / "a", 0, [record(1, 0, 5)])
    with pytest.raises(DataError, match=says):
        TopKRuns(a, run(tmp_path / "b", 1, [record(1, 1, 5)], **changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"token_ids": [9] * T}, "token_ids"), ({"tokens": ["?"] * T}, "tokens"), ({"vocab_size": 41}, "vocab_size")],
)
def test_rows_of_other_vocabularies_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    a, b = run(tmp_path / "a", 0, [record(1, 0, 5)]), run(tmp_path / "b", 1, [record(1, 1, 5) | change])
    with pytest.raises(DataError, match=f"row r1 has other {says}"):
        list(TopKRuns(a, b).records())


def test_the_same_data_may_lie_elsewhere(tmp_path: Path) -> None:
    a = run(tmp_path / "a", 0, [record(1, 0, 5)])
    b = run(tmp_path / "b", 1, [record(1, 1, 5)], data=DATA | {"source": "copies/d.jsonl"})
    assert len(list(TopKRuns(a, b).records())) == 1


def test_what_no_row_could_hold_is_told_with_its_place(tmp_path: Path) -> None:
    broken = record(1, 1, 5)
    broken["top"][3]["values"][0] = 0.5
    a, b = run(tmp_path / "a", 0, [record(1, 0, 5)]), run(tmp_path / "b", 1, [broken])
    with pytest.raises(DataError, match="row r1, token 3: a row's probabilities sum to more than 1"):
        list(TopKRuns(a, b).records())


def test_measures_without_bounds_are_refused(runs: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="no bounds are known for renyi:2; there are js"):
        TopKRuns(*runs, ["js", "renyi:2"])
