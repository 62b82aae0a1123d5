"""The page in a real browser, over real services: Chromium, driven by Playwright. `make test-web`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.running_service import running, table_pair, write_table

DEMO = Path(__file__).resolve().parents[2] / "demo"
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise pytest.UsageError("no Chromium on PATH: apt-get install chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # the machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with the demo pair."""
    pair = {
        "name": "demo",
        "a": {"name": "base", "path": str(DEMO / "base"), "dtype": "float32", "device": "cpu"},
        "b": {"name": "rl", "path": str(DEMO / "rl"), "dtype": "float32", "device": "cpu"},
        "examples": str(DEMO / "problems.jsonl"),
    }
    with running(tmp_path_factory.mktemp("demo"), {"pairs": [pair]}) as service:
        service.wait_for(lambda: "serving on" in service.log.read_text(), 120)
        yield service.url


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with tables: `slow` writes for ever, `long` writes 5,000 tokens, `markup` HTML;
    each model of `apart` excludes what the other allows."""
    folder = tmp_path_factory.mktemp("tables")
    markup = {"tokens": ["a", SCRIPT, IMAGE, "&amp;", "<eos>"], "eos": "<eos>", "max_len": 100}
    rows = {"": {SCRIPT: 0.4, IMAGE: 0.3, "&amp;": 0.3}}
    document = {
        "pairs": [
            table_pair(folder, "slow", endless=True, delay=0.02, max_len=100_000),
            table_pair(folder, "long", endless=True, max_len=6000),
            table_pair(folder, "apart"),
            {
                "name": "markup",
                "backend": "table",
                "a": {"path": write_table(folder / "markup-a.json", rows, **markup)},
                "b": {
                    "path": write_table(
                        folder / "markup-b.json", {"": {SCRIPT: 0.2, IMAGE: 0.4, "&amp;": 0.4}}, **markup
                    )
                },
            },
        ]
    }
    with running(folder, document) as service:
        yield service.url


class Visit:
    """A page that is open, what it asked for, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.expected: list[str] = []  # parts of what the browser itself logs about answers a test provokes
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)

    def open(self, url: str, view: str = "live", pair: str | None = None) -> None:
        self.page.goto(f"{url}/#{view}")
        expect(self.page.locator("#pair-state")).to_have_text("ready")
        if pair is not None:
            self.page.select_option("#pair", pair)
            expect(self.page.locator("#name-a")).to_have_text(f"{pair}-{'a' if pair == 'markup' else 'base'}")

    def write(self, prompt: str, **sampling: Any) -> None:
        """Enter a problem and press the button; returns at once."""
        self.page.fill("#prompt", prompt)
        for name, value in sampling.items():
            self.page.fill(f"#sampling-{name}", str(value))
        self.page.click("#go")

    def finished(self, timeout: float = 60_000) -> None:
        expect(self.page.locator("#go")).to_be_enabled(timeout=timeout)

    def shown(self, where: str = "#live .tokens") -> str:
        return str(self.page.locator(where).text_content())

    def leads(self, where: str = "#live") -> str:
        nodes = self.page.locator(f"{where} .tok").all()
        return "".join("b" if " b " in f" {node.get_attribute('class')} " else "a" for node in nodes)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh profile. Whatever a page does, it fetches from its own service alone and no error reaches the console."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    visit = Visit(context.new_page())
    yield visit
    origin = visit.page.url.split("/#")[0]
    context.close()
    assert [url for url in visit.requests if not url.startswith((origin, "blob:"))] == []
    assert [fault for fault in visit.faults if not any(part in fault for part in visit.expected)] == []


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    """The service's own answer, to compare with."""
    response = httpx.post(url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()
