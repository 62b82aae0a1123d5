"""Live: what streams in is what the API says, and what a dragged threshold promises comes true."""

from __future__ import annotations

import random
import re
import time

import httpx
import pytest
from playwright.sync_api import expect

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Signals, initial_state, step
from tests.web.conftest import IMAGE, SCRIPT, Visit, ask

PROMPT = "Q: 99-9+4-5+2="


def answer(url: str, on: float = 0.1, **policy: object) -> dict[str, object]:
    body = {
        "prompt": PROMPT,
        "policy": {"kind": "divergence", "on": on, **policy},
        "sampling": {"seed": 1, "max_tokens": 120},
    }
    return dict(ask(url, "/switch-generate", body))


def test_a_text_streams_in_coloured_by_leader_and_shaded_by_divergence(visit: Visit, demo: str) -> None:
    visit.open(demo)
    expect(visit.page.locator("#example option")).to_have_count(101)
    expect(visit.page.locator("#prompt")).not_to_have_value("")
    visit.page.select_option("#example", "1")
    expect(visit.page.locator("#reference")).to_have_text("answer: 91")
    visit.write(PROMPT, seed=1)
    visit.finished()
    told = answer(demo)
    assert visit.shown() == told["text"]
    assert visit.leads() == told["leads"]
    switches = visit.page.locator("#live .to-a, #live .to-b")
    assert switches.count() == len(told["switches"])  # type: ignore[arg-type]
    parted = max(range(len(told["divergences"])), key=told["divergences"].__getitem__)  # type: ignore
    deepest = visit.page.locator("#live .tok").nth(parted).get_attribute("class") or ""
    assert int(re.search(r"\bl(\d+)\b", deepest)[1]) >= 7  # type: ignore[index]
    assert (visit.page.locator("#live .tok").first.get_attribute("aria-label") or "").startswith("↵, A, JS ")
    expect(visit.page.locator("[data-counter='by B']")).to_have_text(re.compile(rf"^{str(told['leads']).count('b')} "))
    expect(visit.page.locator("[data-counter='lookahead accepted']")).to_have_text(re.compile(r"^\d+ of \d+$"))
    expect(visit.page.locator("[data-counter='tokens/s']")).to_have_text(re.compile(r"^\d+$"))
    expect(visit.page.locator("#live .verdict")).to_have_text("✓ ends with 91")


def test_dragging_the_threshold_marks_what_would_change_and_running_again_does_it(visit: Visit, demo: str) -> None:
    visit.open(demo)
    visit.write(PROMPT, seed=1)
    visit.finished()
    grip = visit.page.locator("#live .grip")
    assert visit.page.locator("#live .changes").count() == 0
    box, plot = grip.bounding_box(), visit.page.locator("#live .plot").bounding_box()
    assert box is not None
    assert plot is not None
    visit.page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 5, plot["y"] + 126, steps=8)  # nearly at the bottom
    low = float(grip.get_attribute("aria-valuenow") or "nan")
    assert 0 < low < 0.05
    told = answer(demo)
    first_leads, values = str(told["leads"]), told["divergences"]
    after = walked({"kind": "divergence", "on": low}, values)  # type: ignore[arg-type]
    wanted = [i for i, (now, then) in enumerate(zip(first_leads, after, strict=True)) if now != then]
    assert wanted
    marked = [
        i
        for i, node in enumerate(visit.page.locator("#live .tok").all())
        if "changes" in str(node.get_attribute("class"))
    ]
    assert marked == wanted  # while the button is still held
    visit.page.mouse.up()
    expect(visit.page.locator("#live .imagined")).to_contain_text(f"the first is token {wanted[0]}")
    visit.page.click("text=Run again from here")
    expect(visit.page.locator("#live .status")).to_contain_text("Done")
    again = answer(demo, on=low)
    assert visit.shown() == again["text"]
    assert visit.leads() == again["leads"]
    assert visit.page.locator("#live .kept").count() == wanted[0]
    # Once more from there, upwards, by the keyboard.
    grip.focus()
    visit.page.keyboard.press("End")
    visit.page.click("text=Run again from here")
    expect(visit.page.locator("#live .status")).to_contain_text("Done")
    high = float(grip.get_attribute("aria-valuenow") or "nan")
    assert visit.shown() == answer(demo, on=high)["text"]


def test_a_rule_that_remembers_more_goes_on_with_what_it_remembers(visit: Visit, demo: str) -> None:
    visit.open(demo)
    visit.page.fill("#policy-min_dwell", "5")
    visit.write(PROMPT, seed=1)
    visit.finished()
    assert visit.leads() == answer(demo, min_dwell=5)["leads"]
    visit.page.locator("#live .grip").press("End")
    high = float(visit.page.locator("#live .grip").get_attribute("aria-valuenow") or "nan")
    visit.page.click("text=Run again from here")
    expect(visit.page.locator("#live .status")).to_contain_text("Done")
    assert visit.shown() == answer(demo, on=high, min_dwell=5)["text"]


def walked(policy: dict[str, object], values: list[float | None]) -> str:
    """Who would lead, by `rl_onoff.policy`."""
    parsed = parse_policy(policy)
    state, leads = initial_state(parsed), ""
    for position, value in enumerate(values):
        number = float("inf") if value is None else value
        if value is None and parsed.watched == "delta_logp_a":
            number = -number
        state, lead = step(parsed, state, Signals(position, 0, {parsed.watched: number}))
        leads += lead
    return leads


def test_the_pages_rule_is_the_services(visit: Visit, tables: str) -> None:
    visit.open(tables)
    chance = random.Random(7)
    kinds = [
        {"kind": "divergence", "measure": "kl_ab"},
        {"kind": "entropy"},
        {"kind": "rank"},
        {"kind": "delta_logp", "of": "a"},
        {"kind": "delta_logp", "of": "b"},
        {"kind": "top_prob"},
    ]
    cases = []
    for trial in range(300):
        policy: dict[str, object] = dict(kinds[trial % len(kinds)])
        on = chance.choice([0.1, 0.5, 1.0] if policy["kind"] != "rank" else [1.0, 2.0, 5.0])
        policy["on"] = on
        if chance.random() < 0.5:
            off = on + 0.0 if policy["kind"] == "rank" else on * (1.0 if policy["kind"] != "top_prob" else 1)
            policy["off"] = (
                min(1.0, off * 1.5)
                if policy["kind"] == "top_prob"
                else max(off * 0.5, 1.0 if policy["kind"] == "rank" else 0.0)
            )
        policy["min_dwell"] = chance.choice([1, 1, 2, 7])
        policy["start"] = chance.choice(["a", "b"])
        if chance.random() < 0.3:
            policy["max_b_fraction"] = chance.choice([0.0, 0.1, 0.5])
        signed = policy["kind"] == "delta_logp"
        infinite = policy["kind"] in ("divergence", "delta_logp")
        values = [
            None if infinite and chance.random() < 0.05 else chance.uniform(-2 if signed else 0, 2) for _ in range(40)
        ]
        if policy["kind"] in ("top_prob",):
            values = [min(1.0, value or 0.0) for value in values]
        cases.append((policy, values))
    found = visit.page.evaluate(
        "async (cases) => { const { leads } = await import('/web/policy.js');"
        " return cases.map(([policy, values]) => leads(policy, values)); }",
        cases,
    )
    assert found == [walked(policy, values) for policy, values in cases]
    assert len(set(found)) > 100


def _metric(url: str, name: str, pair: str) -> float:
    total = 0.0
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(name) and f'pair="{pair}"' in line:
            total += float(line.split()[-1])
    return total


def test_stop_stops_the_worker(visit: Visit, tables: str) -> None:
    visit.open(tables, pair="slow")
    visit.write("a", max_tokens=50_000)
    expect(visit.page.locator("#live .tok").nth(20)).to_be_visible()
    deadline = time.monotonic() + 10
    while _metric(tables, "rl_onoff_worker_active", "slow") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    visit.page.click("#stop")
    visit.finished(5000)
    expect(visit.page.locator("#live .status")).to_contain_text("Stopped after")
    while _metric(tables, "rl_onoff_worker_active", "slow") != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    passes = _metric(tables, "rl_onoff_forwards_total", "slow")
    time.sleep(0.5)
    assert _metric(tables, "rl_onoff_forwards_total", "slow") == passes
    # What was written stays, and can be looked at.
    visit.page.locator("#live .tok").nth(3).click()
    expect(visit.page.locator("#details table.top tbody tr")).to_have_count(14)


@pytest.mark.parametrize("key", ["Enter", " "])
def test_token_details_open_by_keyboard(visit: Visit, demo: str, key: str) -> None:
    visit.open(demo)
    visit.write(PROMPT, seed=1)
    visit.finished()
    told = answer(demo)
    visit.page.locator("#go").focus()
    visit.page.keyboard.press("Tab")  # the tokens come next, and are one stop
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press(key)
    expect(visit.page.locator("#details h2")).to_contain_text("Token 3")
    expect(visit.page.locator("#details")).to_have_class(re.compile("pinned"))
    ids, prompt_ids = told["token_ids"], told["receipt"]["prompt_ids"]  # type: ignore[index]
    item = {"prompt_ids": prompt_ids + ids[:3], "solution_ids": [ids[3]]}  # type: ignore[index, operator]
    for side, model in (("a", "base"), ("b", "rl")):
        row = ask(demo, "/distributions", {"model": model, "items": [item], "top_k": 10, "texts": True})["items"][0]
        rows = visit.page.locator(f"#details table.top.{side} tbody tr")
        expect(rows).to_have_count(10)
        wanted = [text.replace("\n", "↵") for text in row["top"][0]["tokens"]]
        wanted = ["␣" + text[1:] if text.startswith(" ") else text for text in wanted]
        for place, text in enumerate(wanted[:3]):
            expect(rows.nth(place).locator("code")).to_have_text(text)
        # Further down are neighbours of 1e-5, whose order hangs on the shape of the pass they come from.
        assert len({*wanted} & {*rows.locator("code").all_text_contents()}) >= 8
    expect(visit.page.locator("#details tr.written")).to_have_count(2)
    for name in ("JS", "Δ log p (B − A)", "entropy of A", "entropy of B", "rank of this token in A"):
        expect(visit.page.locator("#details dt", has_text=name).first).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator("#details")).not_to_have_class(re.compile("pinned"))
    visit.page.keyboard.press("n")
    expect(visit.page.locator("#details h2")).to_contain_text("Token 4")


def test_text_of_models_is_never_html(visit: Visit, tables: str) -> None:
    visit.open(tables, pair="markup")
    visit.write(SCRIPT + IMAGE, max_tokens=60)
    visit.finished()
    shown = visit.shown()
    assert SCRIPT in shown
    assert IMAGE in shown
    assert "&amp;" in shown
    visit.page.locator("#live .tok").nth(2).click()
    expect(visit.page.locator("#details table.top.a tbody tr")).to_have_count(6)
    assert SCRIPT in str(visit.page.locator("#details").text_content())
    visit.page.goto(visit.page.url.replace("#live", "#compare"))
    visit.page.click("#go")
    visit.finished()
    assert visit.page.locator("main script, main img").count() == 0
    assert visit.page.title() == "rl-onoff · compare"


def test_five_thousand_tokens_stay_responsive(visit: Visit, tables: str) -> None:
    visit.open(tables, pair="long")
    visit.page.evaluate(
        "() => { window.slow = []; new PerformanceObserver(list => window.slow.push(...list.getEntries()"
        ".map(e => [e.name, e.duration]))).observe({ type: 'event', durationThreshold: 16, buffered: true }); }"
    )
    visit.write("a", max_tokens=5000)
    page = visit.page
    expect(page.locator("#live .tok").nth(1500)).to_be_attached(timeout=60_000)
    page.locator("#live .tok").nth(40).click()  # while more arrive
    page.keyboard.press("ArrowRight")
    visit.finished(120_000)
    assert page.locator("#live .tok").count() == 5000
    grip = page.locator("#live .grip")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    assert box
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    plot = page.locator("#live .plot").bounding_box()
    assert plot
    for step_up in range(10):  # above every divergence there is
        page.mouse.move(box["x"] + 5, box["y"] + step_up * (plot["y"] + 1 - box["y"]) / 9)
    page.mouse.up()
    assert page.locator("#live .changes").count() > 0
    page.locator("#live .tok").nth(60).click()
    for key in ("ArrowRight", "ArrowDown", "End", "Home", "n", "Enter"):
        page.keyboard.press(key)
        time.sleep(0.05)
    time.sleep(0.3)
    slow = page.evaluate("() => window.slow")
    worst = sorted(slow, key=lambda entry: -entry[1])[:5]
    print("slowest interactions, ms:", worst)
    # As INP has it, all but the odd one: a shared machine may stop everything for a moment.
    assert len([entry for entry in slow if entry[1] >= 200]) <= 1, worst
