"""What goes wrong shows, and mends: errors, lines that break, services that go away, keys."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
from playwright.sync_api import Route, expect

from tests.e2e.running_service import running, table_pair
from tests.web.conftest import Visit, ask
from tests.web.proxy import proxied

KEY = "a-key-for-the-page-itself"
PROMPT = "Q: 99-9+4-5+2="


def undisturbed(url: str) -> str:
    body = {"prompt": PROMPT, "policy": {"kind": "divergence", "on": 0.1}, "sampling": {"seed": 1, "max_tokens": 120}}
    return str(ask(url, "/switch-generate", body)["text"])


def test_an_error_shows_what_is_wrong_and_the_next_request_works(visit: Visit, demo: str) -> None:
    visit.expected = ["status of 422"]
    visit.open(demo)
    visit.write(PROMPT, seed=1, max_tokens=100_000)
    notice = visit.page.locator("#notice")
    expect(notice).to_contain_text("exceed the context")
    visit.finished()
    visit.write(PROMPT, max_tokens=120)
    expect(notice).to_be_hidden()
    visit.finished()
    assert visit.shown() == undisturbed(demo)


def test_examples_that_come_late_leave_alone_what_is_being_written(visit: Visit, demo: str) -> None:
    held: list[Route] = []
    visit.page.route("**/examples", lambda route: held.append(route))
    with visit.page.expect_request("**/examples"):
        visit.open(demo)
    prompt = visit.page.locator("#prompt")
    prompt.focus()
    held.pop().continue_()
    expect(visit.page.locator("#example option")).to_have_count(101)
    expect(prompt).to_have_value("")
    prompt.press_sequentially("Q: 1+1=")
    expect(prompt).to_have_value("Q: 1+1=")


def test_a_line_that_breaks_is_mended_without_a_trace_in_the_text(visit: Visit, demo: str) -> None:
    visit.expected = ["ERR_"]
    with proxied(demo) as proxy:
        visit.open(proxy.url)
        proxy.cut_after = 20
        visit.write(PROMPT, seed=1)
        visit.finished()
        assert proxy.streams == 2
        assert visit.shown() == undisturbed(demo)
        expect(visit.page.locator("#live .status")).to_contain_text("Done")


def test_a_service_that_goes_away_is_waited_for(visit: Visit, demo: str) -> None:
    visit.expected = ["ERR_"]
    with proxied(demo) as proxy:
        visit.open(proxy.url)
        proxy.down = True
        visit.write(PROMPT, seed=1)
        expect(visit.page.locator("#live .status")).to_contain_text("lost. Connecting again")
        timer = threading.Timer(0.5, lambda: setattr(proxy, "down", False))
        timer.start()
        visit.finished()
        timer.join()
        assert visit.shown() == undisturbed(demo)
        # Stop works while the page waits for an answer, too.
        proxy.down = True
        visit.page.click("#go")
        expect(visit.page.locator("#live .status")).to_contain_text("Connecting again")
        visit.page.click("#stop")
        visit.finished(2000)
        proxy.down = False


def test_a_service_with_keys_is_asked_for_one_that_stays_in_memory(visit: Visit, tmp_path: Path) -> None:
    visit.expected = ["status of 401"]
    with running(tmp_path, {"pairs": [table_pair(tmp_path, max_len=200)], "api_keys": [KEY]}) as service:
        page, url = visit.page, service.url
        page.goto(f"{url}/#live")
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "a-key-that-is-not-known")
        page.keyboard.press("Enter")
        expect(page.locator("#key-title")).to_have_text("The service does not know this key")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#pair-state")).to_have_text("ready")
        visit.write("b", max_tokens=20)
        expect(page.locator("#live .tok").first).to_be_visible()
        visit.finished()
        kept = (
            "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,"
            " location.href, history.state])"
        )
        assert page.evaluate(kept) == f'[{{}},{{}},"","{url}/#live",null]'
        assert KEY not in page.content()
        assert page.locator("#key").input_value() == ""
        page.reload()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_contain_text("this service wants an API key")
        expect(dialog).to_be_hidden()  # asked once, not once a request
        page.click("text=Try again")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#pair-state")).to_have_text("ready")
        assert httpx.get(f"{url}/web/main.js").status_code == 200
        for path in ("/examples", "/models", "/metrics", "/web/../models", "/web/nothing.js", "/web/"):
            assert httpx.get(url + path).status_code == 401
