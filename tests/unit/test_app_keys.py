"""API keys: what is asked of every request, what opens nothing, and where keys come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import keys
from app.config import Settings, check_exposure, load
from app.keys import Keys
from app.main import create_app
from rl_onoff.errors import ConfigurationError, Unauthorized

KEY, OTHER = "a-key-of-some-length", "another-key-in-use"


def test_the_openapi_document_says_where_a_key_is_wanted() -> None:
    assert "security" not in create_app(Settings()).openapi()
    document = create_app(Settings(api_keys=(KEY,))).openapi()
    assert document["security"] == [{"api_key": []}]
    assert document["components"]["securitySchemes"]["api_key"] == {"type": "http", "scheme": "bearer"}
    without = {path for path, methods in document["paths"].items() if methods.get("get", {}).get("security") == []}
    assert without == {"/health", "/ready"}
    assert all("security" not in methods["post"] for methods in document["paths"].values() if "post" in methods)


async def let_in(
    path: bytes, *authorization: bytes, method: str = "POST", known: tuple[str, ...] = (KEY, OTHER)
) -> bool:
    passed = False

    async def app(*_: Any) -> None:
        nonlocal passed
        passed = True

    async def receive() -> Any:
        raise AssertionError("nothing of a request is read before its key is known")

    headers = [(b"authorization", value) for value in authorization]
    scope = {"type": "http", "method": method, "path": path.decode(), "raw_path": path, "headers": headers}
    try:
        await Keys(app, [keys.digest(key) for key in known])(scope, receive, receive)  # type: ignore[arg-type]
    except Unauthorized:
        return False
    return passed


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_any_of_the_keys_opens(key: str, scheme: str) -> None:
    assert await let_in(b"/generate", f"{scheme} {key}".encode())


@pytest.mark.parametrize(
    "authorization",
    [
        (),
        (b"",),
        (b"Bearer",),
        (b"Bearer ",),
        (b"Bearer a-key-of-some-lengt",),
        (b"Bearer a-key-of-some-length-and-more",),
        (b"Bearer \xc3\xa9\xff",),
        (b"Basic a-key-of-some-length",),
        (b"a-key-of-some-length",),
        (b"Bearer a-key-of-some-length", b"Bearer a-key-of-some-length"),
        (b"Bearer a-key-of-some-length, Bearer a-key-of-some-length",),
    ],
)
async def test_nothing_else_does(authorization: tuple[bytes, ...]) -> None:
    assert not await let_in(b"/generate", *authorization)


@pytest.mark.parametrize("path", [b"/health", b"/ready"])
async def test_probes_need_no_key(path: bytes) -> None:
    assert await let_in(path, method="GET")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", b"/health"),
        ("POST", b"/health"),
        ("OPTIONS", b"/health"),
        ("GET", b"/health/"),
        ("GET", b"//health"),
        ("GET", b"/HEALTH"),
        ("GET", b"/%68ealth"),
        ("GET", b"/health%2f"),
        ("GET", b"/health/../models"),
        ("GET", b"/models"),
        ("GET", b"/metrics"),
        ("GET", b"/docs"),
        ("GET", b"/openapi.json"),
        ("OPTIONS", b"/generate"),
        ("GET", b"/nothing-here"),
    ],
)
async def test_all_else_does(method: str, path: bytes) -> None:
    assert not await let_in(path, method=method)


async def test_without_keys_everyone_is_let_in() -> None:
    assert await let_in(b"/generate", known=())


def test_keys_come_from_the_environment_and_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_ONOFF_API_KEYS", f"{KEY}, {OTHER}")
    settings = load()
    assert settings.key_digests == (keys.digest(KEY), keys.digest(OTHER))
    assert KEY not in repr(settings)
    check_exposure(settings.model_copy(update={"host": "0.0.0.0"}))


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n{KEY}\n\n  {OTHER}  \n")
    assert Settings(api_keys_file=file).key_digests == (keys.digest(KEY), keys.digest(OTHER))
    file.write_text("# none\n")
    with pytest.raises(ConfigurationError, match="holds no key"):
        check_exposure(Settings(api_keys_file=file, host="0.0.0.0"))
    file.write_text(f"{KEY}\nshort\n")
    with pytest.raises(ConfigurationError, match="line 2") as raised:
        check_exposure(Settings(api_keys_file=file))
    assert "short" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="No such file"):
        check_exposure(Settings(api_keys_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("given", ["short", "with a space in it", "é" * 20, f"{KEY},", "x" * 257])
def test_what_is_no_key_is_refused_unsaid(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RL_ONOFF_API_KEYS", given)
    with pytest.raises(ConfigurationError, match="16 to 256 printable ASCII") as raised:
        load()
    assert given not in str(raised.value)
