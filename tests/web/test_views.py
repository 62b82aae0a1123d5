"""Compare, Score and Runs against the API's own answers; every view against axe-core, in light, dark and narrow."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Download, expect

from tests.web.conftest import DEMO, SCRIPT, Visit, ask

PROMPT = "Q: 99-9+4-5+2="
SOLUTION = "\n1 so guess 98\nA: 98"


def switched(url: str, **policy: Any) -> Any:
    body = {"prompt": PROMPT, "policy": policy, "sampling": {"seed": 1, "max_tokens": 120}}
    return ask(url, "/switch-generate", body)


def saved(visit: Visit, name: str) -> Path:
    with visit.page.expect_download() as waiting:
        visit.page.locator(f"main section:visible >> text={name}").click()
    download: Download = waiting.value
    return Path(download.path())


def test_compare_aligns_three_texts_at_their_first_difference(visit: Visit, demo: str) -> None:
    visit.open(demo, "compare")
    visit.write(PROMPT, seed=1)
    visit.finished()
    told = [
        switched(demo, kind="always_a"),
        switched(demo, kind="divergence", on=0.1),
        switched(demo, kind="always_b"),
    ]
    shared = 0
    while len({each["token_ids"][shared] for each in told}) == 1:
        shared += 1
    assert visit.page.locator("#compare .card").first.locator(".tok").count() == shared > 0
    expect(visit.page.locator("#compare .status").first).to_contain_text(f"First difference at token {shared}.")
    for name, each in zip(("a", "switched", "b"), told, strict=True):
        assert visit.shown(f"#compare .column.{name} .tokens") == each["text"]
        assert visit.page.locator(f"#compare .column.{name} .tok.common").count() == shared
    kept = json.loads(saved(visit, "Save JSON").read_text())
    assert kept["first_difference"] == shared
    assert [kept["responses"][name]["token_ids"] for name in ("a", "switched", "b")] == [e["token_ids"] for e in told]


def score(visit: Visit, url: str) -> Any:
    visit.open(url, "score")
    visit.page.fill("#score-prompt", PROMPT)
    visit.page.fill("#score-solution", SOLUTION)
    visit.page.fill("#score-more", "renyi:0.5")
    visit.page.click("text=Score >> nth=-1")
    expect(visit.page.locator("#score .tok").first).to_be_visible()
    body = {"items": [{"prompt": PROMPT, "solution": SOLUTION}], "measures": ["js", "delta_logp", "renyi:0.5"]}
    return ask(url, "/divergence", body)["items"][0]


def test_score_shows_any_measure_and_saves_it(visit: Visit, demo: str) -> None:
    told = score(visit, demo)
    assert visit.shown("#score .tokens") == "".join(told["tokens"])
    expect(visit.page.locator("#score .statistics")).to_contain_text("perplexity of A")
    for measure in ("js", "renyi:0.5", "delta_logp"):
        visit.page.select_option("#score-measure", measure)
        mean = told["summary"]["measures"][measure]["mean"]
        shown = visit.page.locator("#score dt:text-is('mean') + dd").text_content() or ""
        assert float(shown.split()[0]) == pytest.approx(mean, rel=0.02)
        counted = [
            int((bar.text_content() or "").rpartition(": ")[2])
            for bar in visit.page.locator(".histogram .bin title").all()
        ]
        assert sum(counted) == len(told["tokens"])
    assert visit.page.locator("#score .tok.minus").count() == sum(v < 0 for v in told["values"]["delta_logp"])
    rows = list(csv.DictReader(io.StringIO(saved(visit, "Save CSV").read_bytes().decode())))
    assert [row["token"] for row in rows] == told["tokens"]
    assert [float(row["js"]) for row in rows] == told["values"]["js"]
    response = json.loads(saved(visit, "Save JSON").read_text())["response"]
    assert response["items"][0]["values"]["js"] == told["values"]["js"]
    picture = saved(visit, "Save SVG").read_text()
    assert picture.startswith("<svg")
    assert "guess" in picture
    assert saved(visit, "Save PNG").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def run_file(demo: str, tmp_path: Path) -> Path:
    """Lines as `rl-onoff switch` and `rl-onoff divergence` write them, a plain row, a refused one and a torn one."""
    one = switched(demo, kind="divergence", on=0.1)
    apart = ask(demo, "/divergence", {"items": [{"prompt": PROMPT, "solution": SOLUTION}]})["items"][0]
    row = {"id": "first", "sample": 0, "prompt": PROMPT, "reference": "91"}
    keys = ("text", "token_ids", "leads", "measure", "divergences", "signals", "switches", "b_fraction", "seed")
    lines = [
        row | {key: one[key] for key in keys} | {"prompt_ids": one["receipt"]["prompt_ids"], "metrics": {"exact": 1.0}},
        {"id": "second", "sample": 0, "prompt": PROMPT, **apart},
        {"id": "plain", "prompt": "Q: 1+1=", "solution": "\nA: 2", "note": SCRIPT},
        {"id": "refused", "prompt": "Q", "error": {"detail": "items.0.solution: is empty"}},
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"id": "torn')
    return path


def test_runs_are_walked_item_by_item(visit: Visit, demo: str, run_file: Path) -> None:
    visit.open(demo, "runs")
    visit.page.set_input_files("#file", str(run_file))
    one = switched(demo, kind="divergence", on=0.1)
    text = visit.page.locator("#runs .tokens")
    expect(text).to_have_text(f"{one['text']}<eos>")  # ids in the file, texts from the service
    assert visit.leads("#runs") == one["leads"]
    expect(visit.page.locator("#runs .facts").last).to_contain_text("exact1")
    visit.page.click("text=Next →")
    expect(visit.page.locator("#runs h2")).to_contain_text("divergence second")
    visit.page.select_option("#run-measure", "kl_ab")
    visit.page.locator("#runs .tok").nth(2).click()
    expect(visit.page.locator("#details table.top.a tbody tr")).to_have_count(10)
    visit.page.click("text=Next →")
    expect(visit.page.locator("#runs h2")).to_contain_text("record plain")
    visit.page.click("text=Next →")
    expect(visit.page.locator("#runs .facts").last).to_contain_text("items.0.solution: is empty")
    visit.page.click("text=Next →")
    expect(visit.page.locator("#runs .facts").last).to_contain_text("no JSON")
    visit.page.fill("#find", "plain")
    expect(visit.page.locator("#runs .muted[role=status]").first).to_have_text("1 of 1")
    visit.page.click("text=Score this")
    expect(visit.page.locator("#score .tok").first).to_be_visible()
    assert visit.page.locator("#score-solution").input_value() == "\nA: 2"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("switch", "switched"),
        ("divergence", "divergence"),
        ("sample", "sample"),
        ("distributions", "distributions"),  # whole rows: the index of their shards
    ],
)
def test_a_run_of_the_command_line_opens(visit: Visit, demo: str, tmp_path: Path, command: str, kind: str) -> None:
    """What the CLI of this checkout writes, not what we think it writes."""
    more = ["--model", "base"] if command in ("sample", "distributions") else []
    data = ["--data", str(DEMO / "problems.jsonl"), "--limit", "2", "--output", str(tmp_path / "run"), "--url", demo]
    program = [sys.executable, "-m", "rl_onoff.cli", command, *data, *more]
    subprocess.run(program, check=True, capture_output=True, timeout=120)
    results = tmp_path / "run" / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    visit.open(demo, "runs")
    visit.page.set_input_files("#file", str(results))
    for place, row in enumerate(rows):
        expect(visit.page.locator("#runs h2")).to_contain_text(f"{kind} {row['id']}")
        expect(visit.page.locator("#runs .tok").first).not_to_contain_text("‹")
        assert visit.page.locator("#runs .tok").count() == len(row["token_ids"])
        assert (row.get("text") or "".join(row.get("tokens", []))) in visit.shown("#runs .tokens")
        if "leads" in row:
            assert visit.leads("#runs") == row["leads"]
        if place < len(rows) - 1:
            visit.page.click("text=Next →")


def test_a_report_opens_and_is_read_without_the_service(visit: Visit, demo: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = ["--data", str(DEMO / "problems.jsonl"), "--limit", "2", "--output", str(run), "--url", demo]
    for command in (["switch", *data], ["report", str(run)]):
        subprocess.run([sys.executable, "-m", "rl_onoff.cli", *command], check=True, capture_output=True, timeout=120)
    report = run / "report" / "report.html"
    lines = (run / "results.jsonl").read_text().splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: str(row["id"]))
    visit.open(demo, "runs")
    visit.page.set_input_files("#file", str(report))
    expect(visit.page.locator("#runs h2")).to_contain_text(f"switched {rows[0]['id']}")
    assert visit.leads("#runs") == rows[0]["leads"]
    visit.page.goto(f"file://{report}")
    expect(visit.page.locator("#divergence svg")).to_be_visible()
    visit.page.locator("#problems summary").first.click()
    shown = visit.page.locator("#problems details[open] .tokens").last.text_content() or ""
    assert shown == "".join(rows[0]["tokens"])
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        assert [rule["id"] for rule in Axe().run(visit.page).response["violations"]] == []
    visit.requests = [url for url in visit.requests if not url.startswith((f"file://{report}", "data:"))]
    visit.page.goto(demo)  # what else was fetched is compared with where a visit ends


def test_what_the_page_saves_it_opens_also_by_dropping(visit: Visit, demo: str) -> None:
    visit.open(demo)
    visit.write(PROMPT, seed=1)
    visit.finished()
    text = visit.shown()
    document = saved(visit, "Save JSON").read_text()
    report = (
        f'<!doctype html><script type="application/json">{document}</script><script>document.title="owned"</script>'
    )
    visit.page.click("nav >> text=Runs")
    for name, content in (("switched.json", document), ("report.html", report)):
        visit.page.evaluate(
            "([name, content]) => { const data = new DataTransfer(); data.items.add(new File([content], name));"
            " const drop = new DragEvent('drop', { dataTransfer: data, bubbles: true });"
            " document.getElementById('runs').dispatchEvent(drop); }",
            [name, content],
        )
        expect(visit.page.locator("#runs .drop")).to_contain_text(f"{name}: 1 record")
        assert visit.shown("#runs .tokens") == text
    visit.page.set_input_files("#file", {"name": "broken.jsonl", "mimeType": "", "buffer": b"{not json"})
    expect(visit.page.locator("#notice")).to_contain_text("broken.jsonl holds neither JSON nor JSON Lines")
    assert visit.page.title() == "rl-onoff · runs"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)])
def test_axe_finds_no_serious_fault(visit: Visit, demo: str, run_file: Path, scheme: Any, width: int) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 844})
    found: dict[str, Any] = {}

    def look(name: str) -> None:
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
        violations = Axe().run(visit.page).response["violations"]
        serious = [v for v in violations if v["impact"] in ("serious", "critical")]
        if serious:
            found[name] = [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in serious]

    visit.open(demo)
    look("empty")
    visit.write(PROMPT, seed=1)
    visit.finished()
    visit.page.locator("#live .tok").nth(3).click()
    expect(visit.page.locator("#details table.top.a tbody tr")).to_have_count(10)
    visit.page.locator("#live .grip").press("End")
    look("live")
    visit.page.click("nav >> text=Compare")
    visit.page.click("#go")
    visit.finished()
    look("compare")
    score(visit, demo)
    look("score")
    visit.page.click("nav >> text=Runs")
    visit.page.set_input_files("#file", str(run_file))
    expect(visit.page.locator("#runs .tok").first).to_be_visible()
    look("runs")
    assert found == {}


def test_score_tells_minus_infinity_from_infinity(visit: Visit, tables: str) -> None:
    visit.open(tables, "score", pair="apart")
    visit.page.fill("#score-prompt", "b")
    visit.page.fill("#score-solution", "cd")  # B excludes c, A excludes d
    visit.page.click("text=Score >> nth=-1")
    visit.page.select_option("#score-measure", "delta_logp")
    tokens = [visit.page.locator("#score .tok").nth(index) for index in range(2)]
    assert [(token.get_attribute("aria-label") or "").split()[-1] for token in tokens] == ["−∞", "∞"]
    assert ["minus" in (token.get_attribute("class") or "").split() for token in tokens] == [True, False]
    facts = {
        name: visit.page.locator(f"#score dt:text-is('{name}') + dd").text_content() for name in ("minimum", "maximum")
    }
    assert facts == {"minimum": "−∞", "maximum": "∞"}
    rows = list(csv.DictReader(io.StringIO(saved(visit, "Save CSV").read_bytes().decode())))
    assert [row["delta_logp"] for row in rows] == ["-inf", "inf"]
