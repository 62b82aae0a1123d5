from __future__ import annotations

from pathlib import Path

import pytest

from app.config import load, pair_settings
from app.main import serve
from app.sources import check_sources
from rl_onoff.errors import ConfigurationError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: one model in it, and a folder and a file that are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("demo/base", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "demo/base/config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize("source", ["demo/base", "./demo/base", "~/demo/base", "gpt2", "org/model-1.5B_x"])
def test_what_may_be_a_model(here: Path, source: str) -> None:
    check_sources(pair_settings("demo/base", source))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("demo/bsae", "there is no folder demo/bsae"),
        ("./model", "there is no folder ./model"),
        ("/nowhere/model", "there is no folder /nowhere/model"),
        ("a/b/c", "there is no folder a/b/c"),
        ("org/", "there is no folder org/"),
        ("", "no config.json"),
        ("empty", "the folder empty holds no config.json"),
        ("file", "file is no folder"),
    ],
)
def test_what_is_none(here: Path, source: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        check_sources(pair_settings("demo/base", source))
    assert caught.value.detail.startswith("pair pair: ")


def test_tables_and_adapters(here: Path) -> None:
    check_sources(pair_settings("file", "file", backend="table"))
    with pytest.raises(ConfigurationError, match="there is no file nowhere"):
        check_sources(pair_settings("file", "nowhere", backend="table"))
    (here / "models.yaml").write_text("pairs: [{name: p, a: {path: demo/base}, b: {adapter: demo/base}}]")
    with pytest.raises(ConfigurationError, match=r"holds no adapter_config\.json"):
        check_sources(load(here / "models.yaml"))


def test_a_mistyped_folder_beside_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models.yaml").write_text("pairs: [{name: p, a: {path: demo/base}, b: {path: demo/bsae}}]")
    monkeypatch.chdir("/")
    with pytest.raises(ConfigurationError, match=r"there is no folder .*/demo/bsae"):
        check_sources(load(here / "models.yaml"))


def test_the_service_does_not_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(pair_settings("demo/base", "demo/bsae", port=0)) == 2
    assert capsys.readouterr().err == "rl-onoff: pair pair: there is no folder demo/bsae\n"
