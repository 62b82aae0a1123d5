"""The page as files: what is served, under which policy, and what is offered to try."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from app.config import Settings, load
from app.main import create_app
from app.pair_config import PairConfig
from app.services.examples import read_examples
from app.sources import check_sources
from rl_onoff.errors import ConfigurationError
from rl_onoff.schemas import Example

WEB = Path(__file__).resolve().parents[2] / "app" / "web"


@pytest.fixture
def http() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(Settings())), base_url="http://service")


async def test_every_file_of_the_page_is_served_and_nothing_else(http: httpx.AsyncClient) -> None:
    for path in WEB.iterdir():
        answer = await http.get("/" if path.name == "index.html" else f"/web/{path.name}")
        assert answer.content == path.read_bytes()
        kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
        assert answer.headers["content-type"].split(";")[0] == kinds[path.suffix]
    for name in ("nothing.js", "..%2fmain.py", "%2e%2e/main.py", "main.js%00", "", "./index.html/x"):
        assert (await http.get(f"/web/{name}")).status_code == 404


async def test_a_known_file_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/web/main.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for given in (etag, f'"other", {etag}', f"W/{etag}"):
        again = await http.get("/web/main.js", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await http.get("/web/main.js", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_the_page_may_fetch_and_run_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    policy = (await http.get("/")).headers["content-security-policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in policy
    assert directives["frame-ancestors"] == "'none'"
    for path in WEB.iterdir():
        text = path.read_text()
        urls = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert urls == set(), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", text)


def pair(examples: Path) -> PairConfig:
    return PairConfig.model_validate(
        {"name": "p", "backend": "table", "a": {"path": "a"}, "b": {"path": "b"}, "examples": str(examples)}
    )


def test_examples_are_the_first_ones_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"prompt": "1+1", "reference": "2", "more": 1}\n{"prompt": "2+2"}\n{"prompt": "3+3"}\n')
    assert read_examples([pair(file)], 2).pairs == {
        "p": [Example(prompt="1+1", reference="2"), Example(prompt="2+2", reference=None)]
    }


@pytest.mark.parametrize("line", [b"{not json", b'"text"', b'{"question": "1+1"}', b'{"prompt": 1}', b"\xff\xfe"])
def test_a_file_that_holds_no_problems_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(b'{"prompt": "1+1"}\n' + line + b"\n")
    with pytest.raises(ConfigurationError, match="line 2 of the file of examples"):
        read_examples([pair(file)], 100)


def test_examples_lie_beside_the_configuration_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "pairs: [{name: p, backend: table, a: {path: a.json}, b: {path: b.json}, examples: problems.jsonl}]"
    )
    settings = load(tmp_path / "models.yaml")
    assert settings.pairs[0].examples == str(tmp_path / "problems.jsonl")
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    settings = load(tmp_path / "models.yaml")
    with pytest.raises(ConfigurationError, match=r"there is no file .*problems\.jsonl"):
        check_sources(settings)
