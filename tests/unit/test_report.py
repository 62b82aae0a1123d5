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
from rl_onoff.report import make_report, read_runs, write
from rl_onoff.report.outcomes import Outcomes, flips, natural
from rl_onoff.report.style import inline
from rl_onoff.report.tables import Table
from rl_onoff.report.tokens import Means, TokenStats, columns
from rl_onoff.runs import RunFolder, summarise
from rl_onoff.statistics import clustered_stderr

EVIL = "</script><script>document.title='owned'</script><!--"
METRIC = "exact_match"
POLICY = "divergence on=0.1"
CONTROL = f"random, as often as {POLICY}"
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


def run(folder: Path, policy: dict[str, Any], draw: int, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    chance = random.Random(draw)
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
    identity = {"command": "sweep", "settings": {"metrics": [METRIC]}, "models": MODELS, "data": {}}
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
    rows = [row for row in table(written, "divergence-histogram") if row["series"] == f"{POLICY}: js"]
    assert sum(int(row["tokens"]) for row in rows) == np.isfinite(values).sum()
    assert int(rows[0]["tokens"]) == (values < 1e-8).sum()
    around = [row for row in rows if float(row["from"]) <= 0.3 < float(row["to"])]
    assert [int(row["tokens"]) for row in around] == [(values == 0.3).sum()]
    (summary,) = (row for row in table(written, "divergence") if row["series"] == f"{POLICY}: js")
    assert (int(summary["tokens"]), int(summary["infinite"])) == (values.size, np.isinf(values).sum())
    assert float(summary["mean"]) == pytest.approx(values[np.isfinite(values)].mean())

    ranks = np.array([v for r in records for v in r["signals"]["rank_of_b_in_a"]])
    found = {row["class"]: float(row["share"]) for row in table(written, "shifts") if row["series"] == POLICY}
    marginal = ((ranks > 1) & (ranks <= 3)).mean()
    assert found == pytest.approx(
        {"unshifted": (ranks == 1).mean(), "marginal": marginal, "shifted": (ranks > 3).mean()}
    )
    lengths = [len(run) for r in records for run in re.findall("b+", r["leads"])]
    (counted,) = (row for row in table(written, "run-lengths") if (row["condition"], row["model"]) == (POLICY, "B"))
    assert int(counted["runs"]) == len(lengths)
    assert float(counted["mean length"]) == pytest.approx(np.mean(lengths))
    assert int(counted["longest"]) == max(lengths)

    entropies = np.concatenate([r["signals"]["entropy_a"] for r in records])
    for row in (row for row in table(written, "entropy") if row["series"] == POLICY):
        inside = (entropies >= float(row["entropy from"])) & (entropies < float(row["to"])) & np.isfinite(values)
        assert int(row["tokens"]) == inside.sum()
        assert float(row["mean"]) == pytest.approx(values[inside].mean())


def test_values_and_intervals_are_those_of_the_summaries(study: Path, written: Path) -> None:
    rows = {row["condition"]: row for row in table(written, "accuracy")}
    assert set(rows) == {"A alone", "B alone", POLICY, CONTROL}
    for name, folder in (("A alone", "a_alone"), ("B alone", "b_alone"), (POLICY, "js"), (CONTROL, "js-control")):
        records = (json.loads(line) for line in (study / folder / "results.jsonl").read_text().splitlines())
        summary = summarise(records, [METRIC])
        own = summary["metrics"][METRIC]
        assert [float(rows[name][each]) for each in (METRIC, f"{METRIC} low", f"{METRIC} high")] == pytest.approx(
            [own[each] for each in ("value", "low", "high")]
        )
        if folder.startswith("js"):
            assert float(rows[name]["B's tokens"]) == pytest.approx(summary["b_fraction"])
        for k, each in own["pass_at_k"].items():
            if name != CONTROL:
                (found,) = (row for row in table(written, "pass-at-k") if (row["condition"], row["k"]) == (name, k))
                assert float(found["pass@k low"]) == pytest.approx(each["low"])
                assert float(found["pass@k"]) == pytest.approx(each["value"])
    assert rows["A alone"]["B's tokens"] == "0.0"
    assert rows[CONTROL]["control of"] == POLICY
    assert float(rows[POLICY]["recovery"]) == pytest.approx((9 / 12 - 4 / 12) / (11 / 12 - 4 / 12))


def test_means_in_bins_have_errors_clustered_by_text() -> None:
    chance = np.random.default_rng(0)
    means, keys, values, ids = Means(2), [], [], []
    for each in range(7):
        key, value = chance.integers(0, 2, 11), chance.random(11) + each
        means.add(key, value)
        keys.append(key)
        values.append(value)
        ids.append(np.full(11, each))
    key, value, cluster = map(np.concatenate, (keys, values, ids))
    for bin_ in (0, 1):
        chosen = key == bin_
        assert means.counts[bin_] == chosen.sum()
        assert means.mean()[bin_] == pytest.approx(value[chosen].mean())
        assert means.stderr()[bin_] == pytest.approx(clustered_stderr(value[chosen], cluster[chosen]))


def test_the_places_furthest_apart_are_kept_in_order() -> None:
    chance, stats, all_values = random.Random(3), TokenStats(), []
    for problem in range(40):
        values = [chance.random() for _ in range(30)]
        all_values += values
        ids = list(range(30))
        stats.add({"id": problem, "token_ids": ids, "tokens": ["t"] * 30, "values": {"js": values}})
    assert [place.value for place in stats.top_places()] == sorted(all_values, reverse=True)[:20]


def test_top_tokens_are_those_with_the_largest_sums() -> None:
    stats = TokenStats()
    stats.add(
        {"id": 1, "token_ids": [5, 6, 5, 7], "tokens": ["x", "y", "x", "z"], "values": {"js": [0.2, 0.3, 0.4, None]}}
    )
    assert stats.top_tokens(2) == [(5, 2, pytest.approx(0.3), 0.4), (6, 1, 0.3, 0.3)]
    assert stats.texts == {5: "x", 6: "y", 7: "z"}


def test_flips_are_counted_by_problem_and_sample() -> None:
    def judged(**right: list[int]) -> Outcomes:
        made = Outcomes()
        for problem, values in right.items():
            for sample, value in enumerate(values):
                made.add(0, {"id": problem, "sample": sample, "metrics": {METRIC: value}})
        return made

    a, b = judged(p=[0, 1], q=[1], only=[1]), judged(p=[1, 1], q=[0])
    found = flips(METRIC, a, b, judged(p=[1, 0], q=[1]))
    assert {cell: count for cell, count in found.cells.items() if count} == {
        (False, True, True): 1,
        (True, True, False): 1,
        (True, False, True): 1,
    }
    assert (found.gained, found.lost) == (1, 1)
    assert [(each.id, each.gained, each.lost) for each in found.problems] == [("p", 1, 1), ("q", 0, 0)]


def test_samples_of_one_noise_are_paired_whatever_their_number_in_the_run() -> None:
    def judged(run_seed: int, seeds: list[int]) -> Outcomes:
        made = Outcomes()
        for sample, seed in enumerate(seeds):
            made.add(run_seed, {"id": "p", "sample": sample, "seed": seed, "metrics": {METRIC: float(seed == 22)}})
        return made

    a, switched = judged(0, [11, 22]), judged(2, [22])  # of `seeds: [1, 2]`, and of the second alone
    cells = flips(METRIC, a, a, switched).cells
    assert {cell: count for cell, count in cells.items() if count} == {(True, True, True): 1}


def test_seeds_of_one_policy_are_one_condition_and_b_leads_is_turned_round(tmp_path: Path) -> None:
    identity = {"command": "sweep", "settings": {"metrics": [METRIC]}, "models": MODELS, "data": {"sha256": "0"}}
    policy = {"kind": "divergence", "on": 0.1}
    with RunFolder.open(tmp_path / "s", identity, resume=False) as opened:
        for seed in (1, 2):
            for direction in ("a_to_b", "b_to_a"):
                name = f"{direction}-{seed}"
                run(tmp_path / "s" / name, policy, seed, seed=seed)
                record = {"id": name, "direction": direction, "policy": policy, "control_of": None, "seed": seed}
                opened.append([record])
    runs = read_runs([tmp_path / "s"])
    forth, back = runs.parts
    assert [folder.name for folder in forth.folders] == ["a_to_b-1", "a_to_b-2"]
    assert {seed for seed, _ in forth.records()} == {1, 2}
    for (_, one), (_, other) in zip(forth.records(), back.records(), strict=True):
        assert [{"a": "b", "b": "a"}[lead] for lead in one["leads"]] == list(other["leads"])
        assert other["signals"].keys() == {"entropy_b", "rank_of_a_in_b"}
    found = Outcomes()
    for seed, record in forth.records():
        found.add(seed, record)
    assert {len(samples) for samples in found.scores[METRIC].values()} == {4}
    shares = {row["condition"]: float(row["B's tokens"]) for row in csv.DictReader(
        make_report([tmp_path / "s"]).files["tables/accuracy.csv"].decode().splitlines()
    )}  # fmt: skip
    assert shares[forth.label] == pytest.approx(1 - shares[back.label])


def test_budgets_that_come_to_one_threshold_are_conditions_of_their_own(tmp_path: Path) -> None:
    identity = {"command": "sweep", "settings": {"metrics": [METRIC]}, "models": MODELS, "data": {}}
    policy, rate = {"kind": "divergence", "on": 0.1}, {"kind": "random", "rate": 0.2}
    with RunFolder.open(tmp_path / "s", identity, resume=False) as opened:
        for budget in (0.031, 0.032):
            name = f"budget={budget}"
            found: dict[str, Any] = {"id": name, "direction": "a_to_b", "policy": policy, "control_of": None}
            control = {"id": f"{name}-control", "direction": "a_to_b", "policy": rate, "control_of": name}
            run(tmp_path / "s" / name, policy, 1)
            run(tmp_path / "s" / f"{name}-control", rate, 2)
            opened.append([found | {"calibration": {"budget": budget, "on": 0.1}}, control])
    write([tmp_path / "s"], tmp_path / "out")
    labels = [f"{POLICY} (budget {share})" for share in ("3.1%", "3.2%")]
    rows = table(tmp_path / "out", "accuracy")
    assert [row["condition"] for row in rows] == [
        each for label in labels for each in (label, f"random, as often as {label}")
    ]
    assert {(row["problems"], row["texts"]) for row in rows} == {("12", "24")}


def test_runs_that_differ_by_their_seed_alone_are_one_condition(tmp_path: Path) -> None:
    kinds = {"a": {"kind": "always_a"}, "b": {"kind": "always_b"}, "s": {"kind": "divergence", "on": 0.1}}
    folders = [tmp_path / f"{name}{seed}" for name in kinds for seed in (1, 2)]
    for folder in folders:
        run(folder, kinds[folder.name[0]], 3, seed=int(folder.name[1]))
    write(folders, tmp_path / "out")
    rows = {row["condition"]: row for row in table(tmp_path / "out", "accuracy")}
    assert {label: row["texts"] for label, row in rows.items()} == {"A alone": "48", "B alone": "48", POLICY: "48"}
    (flipped,) = table(tmp_path / "out", "flips")
    assert flipped["samples"] == "48"
    assert "samples, by problem" not in (tmp_path / "out" / "report.html").read_text()
    again = [*folders, tmp_path / "s1-again"]
    run(again[-1], kinds["s"], 3, seed=1)
    counted = {part.label: len(part.folders) for part in read_runs(again).parts}
    assert counted == {"A alone": 2, "B alone": 2, POLICY: 2, f"{POLICY} [s1-again]": 1}

    page = write([each for each in folders if each.name != "a2"], tmp_path / "less").read_text()
    assert f"{POLICY}: A alone has 24 of its 48 samples, by problem and seed" in page
    assert "B alone has" not in page


def test_sweeps_that_differ_by_their_seed_alone_are_one(tmp_path: Path) -> None:
    policy, rate = {"kind": "divergence", "on": 0.1}, {"kind": "random", "rate": 0.2}
    for seed in (1, 2):
        settings = {"metrics": [METRIC], "seed": seed}
        identity = {"command": "sweep", "settings": settings, "models": MODELS, "data": {}}
        folder = tmp_path / f"s{seed}"
        with RunFolder.open(folder, identity, resume=False) as opened:
            for name, each, of in (("js", policy, None), ("js-control", rate | {"rate": seed / 10}, "js")):
                run(folder / name, each, seed, seed=seed)
                opened.append([{"id": name, "direction": "a_to_b", "policy": each, "control_of": of}])
    parts = read_runs([tmp_path / "s1", tmp_path / "s2"]).parts
    assert {part.label: len(part.folders) for part in parts} == {POLICY: 2, CONTROL: 2}


def test_the_alone_that_a_condition_is_compared_with_has_its_samples(tmp_path: Path) -> None:
    kinds = {"a": {"kind": "always_a"}, "b": {"kind": "always_b"}, "s": {"kind": "divergence", "on": 0.1}}
    folders = [tmp_path / name for name in ("a1", "a2", "b2", "s2")]
    for folder in folders:  # two As that are no one condition
        run(
            folder,
            kinds[folder.name[0]],
            3,
            seed=int(folder.name[1]),
            sampling={"top_k": 0 if "1" in folder.name else 5},
        )
    page = write(folders, tmp_path / "out").read_text()
    (flipped,) = table(tmp_path / "out", "flips")
    assert flipped["samples"] == "24"
    assert "samples, by problem" not in page


def test_metrics_that_are_no_means_are_as_the_summary_has_them(tmp_path: Path) -> None:
    names, chance = ["perplexity", "bleu"], random.Random(4)
    words = ["the", "cat", "sat", "on", "a", "mat"]
    results = [
        {
            "id": f"p{problem}",
            "sample": sample,
            "text": " ".join(chance.choices(words, k=8)),
            "reference": "the cat sat on a mat",
            "token_ids": list(range(chance.randint(2, 9))),
            "metrics": {"bleu": chance.random(), "perplexity": chance.choice([1.5, 2.5])},
        }
        for problem in range(4)
        for sample in range(2)
    ]
    identity = {"command": "sample", "settings": {"metrics": names}, "models": MODELS[:1], "data": {}}
    for folder, more in (("finite", []), ("infinite", [results[0] | {"id": "q", "metrics": {"perplexity": None}}])):
        with RunFolder.open(tmp_path / folder, identity, resume=False) as opened:
            opened.append([*results, *more])
    write([tmp_path / "finite"], tmp_path / "out", metric="bleu")
    expected = summarise(results, names)["metrics"]
    for name, of in (("bleu", "accuracy"), ("perplexity", "accuracy-2")):
        (row,) = table(tmp_path / "out", of)
        assert [float(row[each]) for each in (name, f"{name} low", f"{name} high")] == pytest.approx(
            [expected[name][each] for each in ("value", "low", "high")]
        )
        assert (row["problems"], row["texts"]) == ("4", "8")
    write([tmp_path / "infinite"], tmp_path / "out", metric="perplexity")
    assert table(tmp_path / "out", "accuracy")[0]["perplexity"] == "inf"


def test_an_svg_in_the_page_cannot_do_anything() -> None:
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="x()">'
        b'<script>x()</script><style>*{}</style><foreignObject/><a xlink:href="https://e.org"><path/></a>'
        b'<image xlink:href="https://e.org/i.png"/><defs><path id="p"/></defs><use xlink:href="#p" onclick="x()"/>'
        b'<use xlink:href="https://e.org/#p"/><g clip-path="url(#c)" style="fill: #1b1d21">'
        b"<text>&lt;script&gt;</text></g></svg>"
    )
    found = inline(svg, "one", 'a "title"')
    assert not re.search(r"<script|onload|onclick|e\.org|foreignObject|<style|<a ", found)
    assert 'id="one-p"' in found
    assert 'href="#one-p"' in found
    assert "url(#one-c)" in found
    assert "fill: var(--ink)" in found
    assert "&lt;script&gt;" in found


def test_a_csv_holds_no_formula_and_ids_sort_by_their_numbers() -> None:
    made = Table(["token", "n"], [["=HYPERLINK(1)", 1], ["\ud800", math.nan]]).csv()
    assert made.splitlines() == ["token,n", "'=HYPERLINK(1),1", "\\ud800,"]
    assert sorted(["p10", "p9", "p", "9", "x²"], key=natural) == ["9", "p", "p9", "p10", "x²"]


def test_whatever_stands_in_the_results_is_text(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert EVIL not in page
    assert html.escape(EVIL) in page
    assert "<b>0</b>" not in page
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", page, re.S)
    assert [kind.strip() for kind, _ in scripts] == ['type="application/json" id="records"']
    records = json.loads(scripts[0][1])
    assert records[0]["prompt"].startswith("<b>")
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!#)|url\((?!#)|@import', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    anchors = set(re.findall(r'<details id="([^"]+)"', page))
    linked = set(re.findall(r'href="#(problem-[^"]+)"', page))
    assert linked
    assert linked <= anchors


def test_the_same_runs_give_the_same_bytes(study: Path, written: Path, tmp_path: Path) -> None:
    write([study], tmp_path / "two")
    (tmp_path / "one").symlink_to(written)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert len([path for path in files[0] if path.suffix == ".png"]) == 8
    for path in files[0]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_several_runs_are_one_report(tmp_path: Path) -> None:
    run(tmp_path / "switch", {"kind": "divergence", "on": 0.1}, 1)
    for name, model in (("samples-of-a", MODELS[0]), ("samples-of-b", MODELS[1])):
        identity = {"command": "sample", "settings": {"metrics": [METRIC]}, "models": [model], "data": {"source": "d"}}
        with RunFolder.open(tmp_path / name, identity, resume=False) as opened:
            drawn = [
                {"id": f"p{i}", "sample": 0, "text": "x", "token_ids": [1], "metrics": {METRIC: 1.0}} for i in range(5)
            ]
            opened.append(each | {"reference": "x", "finish_reason": "stop"} for each in drawn)
    folders = [tmp_path / name for name in ("samples-of-a", "samples-of-b", "switch")]
    assert [each.role for each in read_runs(folders).parts] == ["a", "b", "switched"]
    page = write(folders, tmp_path / "out").read_text()
    (row,) = table(tmp_path / "out", "flips")
    assert (int(row["samples"]), int(row["A wrong, now right"]), int(row["A right, now wrong"])) == (5, 0, 2)
    assert "are over different data" in page
    assert "No random control" in page


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
    assert "noise floor: pass shape" in page
    assert "--measure js --measure entropy_a" in page
    assert "No run has a score" in page
    assert [row["share"] for row in table(tmp_path / "out", "shifts")] == ["0.5", "0.0", "0.5"]
    assert not (tmp_path / "out" / "tables" / "accuracy.csv").exists()


def test_infinite_values_have_the_sign_that_the_record_tells() -> None:
    values = {"delta_logp": [None, 0.5, None], "kl_ab": [None, 0.1, 0.2]}
    found = columns({"values": values, "negative_infinite": {"delta_logp": [2]}})
    assert found["delta_logp"].tolist() == [np.inf, 0.5, -np.inf]
    assert found["kl_ab"].tolist() == [np.inf, 0.1, 0.2]


def test_what_cannot_be_reported_is_said(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        read_runs([tmp_path])
    with pytest.raises(DataError, match=r"no condition 'nope'; there are a_alone \(A alone\), b_alone"):
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
        read_runs([tmp_path / "s"])


def test_without_matplotlib_the_command_is_named(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=re.escape("pip install 'rl-onoff[report]'")):
        write([study], tmp_path / "out")


def test_the_command_writes_into_the_run_by_default_and_at_most_so_many_texts(study: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(study), "--texts", "3"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip() == str(study / "report" / "report.html")
    page = (study / "report" / "report.html").read_text()
    assert page.count("<details id=") == 3
    assert "At most 3 problems" in page
    assert page.index("<strong>p1</strong>") < page.index("<strong>p2</strong>")  # these were turned; p0 A has as well
    assert "<strong>p0</strong>" not in page
    answer = CliRunner().invoke(app, ["report", str(study / "nothing")])
    assert answer.exit_code == 2
    answer = CliRunner().invoke(app, ["report", str(study), "--texts", "0", "-o", "/dev/null/report"])
    assert answer.exit_code == 74
    assert answer.stderr == "rl-onoff: the output cannot be written: /dev/null/report: Not a directory\n"
