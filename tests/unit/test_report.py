"""Reports: their numbers by other means, their HTML against texts that would break it, their bytes twice."""

from __future__ import annotations

import csv
import html
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rl_onoff.cli import app
from rl_onoff.errors import DataError, MissingDependency
from rl_onoff.report import conditions, write
from rl_onoff.report.atlas import Atlas, Binned
from rl_onoff.report.outcomes import flips
from rl_onoff.runs import RunFolder, summarise
from rl_onoff.statistics import clustered_stderr

EVIL = "</script><script>document.title='owned'</script><!--"
METRIC = "exact_match"
MODELS = [{"name": "base", "fingerprint": "a" * 64}, {"name": "rl", "fingerprint": "b" * 64}]
PROBLEMS = 12


def result(problem: int, sample: int, policy: str, chance: random.Random) -> dict[str, Any]:
    """As `rl-onoff switch` writes it."""
    length = chance.randint(3, 9)
    values: list[float | None] = [chance.choice([0.0, 1e-9, 1e-4, 0.02, 0.3, None]) for _ in range(length)]
    leads = {"always_a": "a" * length, "always_b": "b" * length}.get(
        policy, "".join("b" if value is None or value > 0.1 else "a" for value in values)
    )
    right = {"always_a": problem % 3 == 0, "always_b": problem != 6}.get(policy, problem % 4 != 0)
    return {
        "id": f"p{problem}",
        "sample": sample,
        "prompt": f"<b>{problem}</b>",
        "reference": "x",
        "text": "x" if right else "y",
        "token_ids": list(range(length)),
        "tokens": [chance.choice([EVIL, "\n", " a", "b"]) for _ in range(length)],
        "leads": leads,
        "measure": "js",
        "divergences": values,
        "signals": {
            "entropy_a": [chance.random() for _ in range(length)],
            "rank_of_b_in_a": [float(chance.choice([1, 2, 3, 9])) for _ in range(length)],
        },
        "finish_reason": "stop",
        "metrics": {METRIC: float(right)},
    }


def run(folder: Path, policy: dict[str, Any], seed: int, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    chance = random.Random(seed)
    results = [result(p, s, policy["kind"], chance) for p in range(PROBLEMS) for s in range(2)]
    settings = {"policy": policy, "metrics": [METRIC], **more}
    identity = {
        "command": "switch",
        "settings": settings,
        "models": MODELS,
        "data": {"source": "d", "sha256": "0" * 64},
    }
    with RunFolder.open(folder, identity, resume=False) as opened:
        opened.append(results)
        opened.append([{"id": "refused", "sample": 0, "error": {"detail": "too long"}}])
    return results, summarise(iter(results), [METRIC])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with one policy and its control."""
    folder = tmp_path_factory.mktemp("sweep") / "study"
    identity = {"command": "sweep", "settings": {}, "models": MODELS, "data": {"source": "d", "sha256": "0" * 64}}
    kinds = {
        "a_alone": {"kind": "always_a"},
        "b_alone": {"kind": "always_b"},
        "js": {"kind": "divergence", "on": 0.1},
        "js-control": {"kind": "random", "rate": 0.2},
    }
    with RunFolder.open(folder, identity, resume=False) as opened:
        for seed, (name, policy) in enumerate(kinds.items()):
            _, summary = run(folder / name, policy, seed)
            of = "js" if name.endswith("control") else None
            record = {"id": name, "direction": "a_to_b", "policy": policy, "control_of": of, "summary": summary}
            opened.append([record | {"share": summary.get("b_fraction", 0.0)}])
    return folder


@pytest.fixture(scope="module")
def written(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report."""
    return write([study], tmp_path_factory.mktemp("report") / "out").parent


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_policy(study: Path) -> list[dict[str, Any]]:
    lines = (study / "js" / "results.jsonl").read_text().splitlines()
    return [record for line in lines if "error" not in (record := json.loads(line))]


def test_the_tables_say_what_the_results_do(study: Path, written: Path) -> None:
    records = of_policy(study)
    values = np.array([math.inf if v is None else v for r in records for v in r["divergences"]])
    rows = table(written, "histogram")
    assert sum(int(row["tokens"]) for row in rows) == values.size
    assert int(rows[0]["tokens"]) == (values < 1e-8).sum()
    assert [int(row["tokens"]) for row in rows if row["from"] == "inf"] == [np.isinf(values).sum()]
    around = [row for row in rows if float(row["from"]) <= 0.3 < float(row["to"])]
    assert [int(row["tokens"]) for row in around] == [(values == 0.3).sum()]
    ranks = np.array([v for r in records for v in r["signals"]["rank_of_b_in_a"]])
    shares = {row["class"]: float(row["share"]) for row in table(written, "shifts")}
    assert shares == pytest.approx(
        {
            "unshifted": (ranks == 1).mean(),
            "marginal": ((ranks > 1) & (ranks <= 3)).mean(),
            "shifted": (ranks > 3).mean(),
        }
    )
    lengths = [len(run) for r in records for run in re.findall("b+", r["leads"])]
    counted = {int(row["tokens"]): int(row["runs"]) for row in table(written, "run_lengths") if row["lead"] == "B"}
    assert counted == {length: lengths.count(length) for length in set(lengths)}
    tokens = {row["token"]: row for row in table(written, "top_tokens")}
    finite = [
        v for r in records for t, v in zip(r["tokens"], r["divergences"], strict=True) if t == " a" and v is not None
    ]
    assert int(tokens[" a"]["times"]) == len(finite)
    assert float(tokens[" a"]["mean"]) == pytest.approx(np.mean(finite))
    assert sum(float(row["share of all"]) for row in tokens.values()) == pytest.approx(1)
    found = {row["condition"]: row for row in table(written, "conditions")}
    assert float(found["b_alone"][METRIC]) == pytest.approx(11 / 12)
    assert found["js-control"]["role"] == "control"
    assert int(found["js"]["failed"]) == 0  # as the study's own summary counts
    k = {(row["condition"], row["k"]): float(row["value"]) for row in table(written, "pass_at_k")}
    assert k["a_alone", "1"] == pytest.approx(4 / 12)
    assert k["a_alone", "2"] == pytest.approx(4 / 12)  # both samples of a problem are alike here


def test_means_in_bins_have_errors_clustered_by_result() -> None:
    chance = np.random.default_rng(0)
    binned, keys, values, ids = Binned(np.array([0.0, 0.5, 1.0])), [], [], []
    for each in range(7):
        key, value = chance.random(11), chance.random(11) + each
        binned.add(key, value)
        keys.append(key)
        values.append(value)
        ids.append(np.full(11, each))
    key, value, cluster = map(np.concatenate, (keys, values, ids))
    for low, _, count, mean, error in binned.rows():
        chosen = (key >= 0.5) == (low == 0.5)
        assert count == chosen.sum()
        assert mean == pytest.approx(value[chosen].mean())
        assert error == pytest.approx(clustered_stderr(value[chosen], cluster[chosen]))


def test_the_places_furthest_apart_are_kept_in_order() -> None:
    chance, atlas, all_values = random.Random(3), Atlas("js"), []
    for problem in range(40):
        values = [chance.random() for _ in range(30)]
        all_values += values
        atlas.add({"id": problem, "tokens": ["t"] * 30, "values": {"js": values}})
    assert [place["value"] for place in atlas.largest()] == sorted(all_values, reverse=True)[:25]


def test_flips_are_counted_by_problem_and_sample() -> None:
    a = {("p", 0): False, ("p", 1): True, ("q", 0): True, ("only", 0): True}
    b = {("p", 0): True, ("p", 1): True, ("q", 0): False}
    switched = {("p", 0): True, ("p", 1): False, ("q", 0): True}
    found = flips(a, b, switched)
    assert found.counts == {(False, True, True): 1, (True, True, False): 1, (True, False, True): 1}
    assert (found.rescued, found.broken) == ([("p", 0)], [("p", 1)])


def test_whatever_stands_in_the_results_is_text(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert EVIL not in page
    assert html.escape(EVIL) in page
    assert "<b>0</b>" not in page
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", page, re.S)
    assert [kind.strip() for kind, _ in scripts] == ['type="application/json"']
    records = json.loads(scripts[0][1])["results"]
    assert records[0]["prompt"].startswith("<b>")
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!data:image/svg\+xml;base64,|#)', page)
    anchors = set(re.findall(r'<details id="([^"]+)"', page))
    linked = set(re.findall(r'href="#(text-[^"]+)"', page))
    assert linked
    assert linked <= anchors


def test_the_same_runs_give_the_same_bytes(study: Path, written: Path, tmp_path: Path) -> None:
    write([study], tmp_path / "two")
    (tmp_path / "one").symlink_to(written)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert len([path for path in files[0] if path.suffix == ".png"]) == 7
    for path in files[0]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_at_most_so_many_texts_and_those_that_were_turned_first(study: Path, tmp_path: Path) -> None:
    page = write([study], tmp_path / "out", texts=3).read_text()
    assert page.count("<details id=") == 3
    assert page.count(": not turned</summary>") == 0
    assert "of at most 3 problems" in page


def test_several_runs_are_one_report(tmp_path: Path) -> None:
    run(tmp_path / "switch", {"kind": "divergence", "on": 0.1}, 1)
    for name, model in (("samples-of-a", MODELS[0]), ("samples-of-b", MODELS[1])):
        identity = {"command": "sample", "settings": {"metrics": [METRIC]}, "models": [model], "data": {"source": "d"}}
        with RunFolder.open(tmp_path / name, identity, resume=False) as opened:
            drawn = [
                {"id": f"p{i}", "sample": 0, "text": "x", "token_ids": [1], "metrics": {METRIC: 1.0}} for i in range(5)
            ]
            opened.append(each | {"reference": "x", "finish_reason": "stop"} for each in drawn)
    found = conditions([tmp_path / name for name in ("samples-of-a", "samples-of-b", "switch")])
    assert [each.role for each in found] == ["a_alone", "b_alone", "policy"]
    write([each.folder for each in found], tmp_path / "out")
    assert {row["A alone"] for row in table(tmp_path / "out", "flips")} == {"right"}


def test_divergences_alone_make_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    identity = {"command": "divergence", "settings": {}, "models": MODELS, "data": {"source": "d", "sha256": "0"}}
    shifts = {name: {"value": value} for name, value in (("unshifted", 0.5), ("marginal", 0.0), ("shifted", 0.5))}
    item = {
        "id": "p",
        "tokens": ["a", "b"],
        "token_ids": [1, 2],
        "values": {"js": [0.1, 0.2]},
        "summary": {"positions": 2, "top1_agreement": 1.0, "perplexity": {"a": 1.5, "b": 2.0}, "shifts": shifts},
        "noise_floor": {"pass_shape": {"js": 1e-7}},
    }
    with RunFolder.open(tmp_path / "d", identity, resume=False) as opened:
        opened.append([item])
    page = write([tmp_path / "d"], tmp_path / "out").read_text()
    assert "Noise floor of the arithmetic: 1e-07" in page
    assert "divergence --measure js --measure entropy_a" in page
    assert [row["share"] for row in table(tmp_path / "out", "shifts")] == ["0.5", "0.0", "0.5"]
    assert not (tmp_path / "out" / "tables" / "pareto.csv").exists()


def test_what_cannot_be_reported_is_said(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        conditions([tmp_path])
    with pytest.raises(DataError, match="no condition 'nope'; there are a_alone, b_alone, js, js-control"):
        write([study], tmp_path / "out", condition="nope")
    with pytest.raises(DataError, match="no metric 'nope' in these runs; there are exact_match"):
        write([study], tmp_path / "out", metric="nope")


def test_names_of_conditions_are_no_paths(tmp_path: Path) -> None:
    identity = {"command": "sweep", "settings": {}, "models": MODELS, "data": {}}
    with RunFolder.open(tmp_path / "s", identity, resume=False) as opened:
        opened.append(
            [{"id": "../x", "direction": "a_to_b", "policy": {"kind": "rank"}, "control_of": None, "share": 0}]
        )
    with pytest.raises(DataError, match="no name of a condition"):
        conditions([tmp_path / "s"])


def test_without_matplotlib_the_command_is_named(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=re.escape("pip install 'rl-onoff[report]'")):
        write([study], tmp_path / "out")


def test_the_command_writes_into_the_run_by_default(study: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(study), "--texts", "2"])
    assert answer.exit_code == 0, answer.output
    assert (study / "report" / "report.html").exists()
    answer = CliRunner().invoke(app, ["report", str(study / "nothing")])
    assert answer.exit_code == 2
