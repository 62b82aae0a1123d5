"""The other views, and what may go wrong: keys, errors, lines that break; and whether everyone can use the page."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.running_service import running, table_pair
from tests.web.conftest import Visit, ask
from tests.web.proxy import proxied

PROMPT = "Q: 99-9+4-5+2="
SOLUTION = "\n1 next work it out: 99-9=90\n2 so guess 90+4=95\nA: 95"
KEY = "a-key-for-the-page-itself"


def body(policy: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    return {"prompt": PROMPT, "policy": policy, "sampling": {"seed": seed, "max_tokens": 120}}


def test_a_service_with_keys_is_asked_for_one_that_stays_in_memory(browser: Browser, tmp_path: Path) -> None:
    document = {"pairs": [table_pair(tmp_path, max_len=200)], "api_keys": [KEY]}
    with running(tmp_path, document) as service:
        context = browser.new_context()
        page = context.new_page()
        page.goto(service.url)
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.fill("#key", "a-key-that-is-not-known")
        page.keyboard.press("Enter")
        expect(page.locator("#key-title")).to_have_text("The service does not know this key")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#pair-state")).to_have_text("ready")
        page.fill("#prompt", "b")
        page.click("#go")
        expect(page.locator("#live .tok").first).to_be_visible()
        kept = "() => JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, history.state])"
        assert KEY not in page.evaluate(kept)
        page.reload()
        expect(dialog).to_be_visible()
        context.close()
        assert httpx.get(f"{service.url}/web/main.js").status_code == 200
        for path in ("/examples", "/models", "/web/../models", "/web/nothing.js", "/web/"):
            assert httpx.get(service.url + path).status_code == 401


def test_a_line_that_breaks_is_mended_without_a_token_lost_or_twice(visit: Visit, tables: str) -> None:
    sampling = {"seed": 3, "max_tokens": 150}
    whole = ask(tables, "/switch-generate", {"a": "slow-base", "b": "slow-tuned", "prompt": "b", "sampling": sampling})
    with proxied(tables) as proxy:
        visit.open(proxy.url, pair="slow")
        proxy.cut_after = 20
        visit.write("b", **sampling)
        visit.finished()
        assert proxy.streams == 2
        assert visit.shown() == whole["text"]
        expect(visit.page.locator("#notice")).to_be_hidden()
    visit.faults.clear()  # the browser's own word on the line


def test_an_error_is_shown_with_its_field_and_the_page_goes_on(visit: Visit, demo: str) -> None:
    visit.open(demo)
    visit.write("Q: 1+1=", max_tokens=100000)
    expect(visit.page.locator("#notice-text")).to_contain_text("max_tokens")
    visit.faults.clear()  # the browser's own word on a 422
    visit.write("Q: 1+1=", max_tokens=40)
    visit.finished()
    expect(visit.page.locator("#notice")).to_be_hidden()
    expect(visit.page.locator("#live .status")).to_contain_text("Done")


def test_compare_shows_three_texts_of_one_noise(visit: Visit, demo: str) -> None:
    visit.open(demo, view="compare")
    visit.write(PROMPT, seed=1, max_tokens=120)
    visit.finished()
    common = visit.shown("#compare > .card .tokens")
    columns = visit.page.locator("#compare .columns .tokens")
    for place, kind in enumerate(("always_a", "divergence", "always_b")):
        policy = {"kind": kind, **({"on": 0.1} if kind == "divergence" else {})}
        text = ask(demo, "/switch-generate", body(policy))["text"]
        assert text.startswith(common)
        assert str(columns.nth(place).text_content()).endswith(text[len(common) :])


def test_score_is_what_the_service_measures_and_can_be_saved(visit: Visit, demo: str, tmp_path: Path) -> None:
    visit.open(demo, view="score")
    page = visit.page
    page.fill("#score-prompt", PROMPT)
    page.fill("#score-solution", SOLUTION)
    page.locator("#score form button[type=submit]").click()
    expect(page.locator("#score .tok").first).to_be_visible()
    told = ask(demo, "/divergence", {"items": [{"prompt": PROMPT, "solution": SOLUTION}], "measures": ["js"]})
    values = told["items"][0]["values"]["js"]
    assert page.locator("#score .tok").count() == len(values)
    saved = {}
    for name in ("JSON", "CSV", "SVG", "PNG"):
        with page.expect_download() as download:
            page.locator("#score").get_by_text(f"Save {name}").click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    document = json.loads(saved["JSON"].read_text())
    assert document["response"]["items"][0]["values"]["js"] == pytest.approx(values, rel=1e-4, abs=1e-9)
    with saved["CSV"].open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["js"]) for row in rows] == pytest.approx(values, rel=1e-4, abs=1e-9)
    assert saved["SVG"].read_text().startswith("<svg")
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG")


def test_a_saved_run_is_walked_again(visit: Visit, demo: str, tmp_path: Path) -> None:
    visit.open(demo)
    visit.write(PROMPT, seed=1)
    visit.finished()
    text = visit.shown()
    with visit.page.expect_download() as download:
        visit.page.locator("#live").get_by_text("Save JSON").click()
    file = tmp_path / "switched.json"
    download.value.save_as(file)
    visit.page.click("nav a[href='#runs']")
    visit.page.set_input_files("#file", file)
    expect(visit.page.locator("#runs .tok").first).to_be_visible()
    assert visit.shown("#runs .tokens") == text
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{not json")
    visit.page.set_input_files("#file", broken)
    expect(visit.page.locator("#notice")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Browser, demo: str, scheme: Any) -> None:
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    found = []
    for view in ("live", "compare", "score", "runs"):
        page.goto(f"{demo}/#{view}")
        page.reload()
        expect(page.locator("#pair-state")).to_have_text("ready")
        if view in ("live", "compare"):
            page.fill("#prompt", PROMPT)
            page.click("#go")
            expect(page.locator("#go")).to_be_enabled(timeout=60_000)
            page.locator(f"#{view} .tok:visible").nth(3).click()
        page.evaluate(source)
        result = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        found += [
            (view, violation["id"], [node["html"][:120] for node in violation["nodes"]][:3])
            for violation in result["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
    context.close()
    assert found == []


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, demo: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(demo)
    expect(page.locator("#pair-state")).to_have_text("ready")
    page.click("#go")
    expect(page.locator("#live .tok").first).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
