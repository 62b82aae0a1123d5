from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings, check_exposure, load, pair_settings
from rl_onoff.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_ONOFF_CONFIG", raising=False)


PAIR: dict[str, Any] = {"name": "p", "a": {"path": "org/base"}, "b": {"path": "org/tuned"}}


def write(folder: Path, document: Any) -> Path:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_nothing_configured_is_the_demo_pair() -> None:
    (pair,) = load().pairs
    assert (pair.name, pair.model_a, pair.model_b, pair.backend) == ("demo", "base", "rl", "hf")
    assert (pair.a.dtype, pair.a.device) == ("float32", "cpu")
    assert str(pair.a.path).endswith("demo/base")


def test_a_file_under_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"port": 1234, "pairs": [PAIR], "limits": {"items": 5, "prompts": 6}})
    assert (load(path).port, load(path).limits.items) == (1234, 5)
    monkeypatch.setenv("RL_ONOFF_CONFIG", str(path))
    monkeypatch.setenv("RL_ONOFF_PORT", "99")
    monkeypatch.setenv("RL_ONOFF_LIMITS__ITEMS", "7")
    settings = load()
    assert (settings.port, settings.limits.items, settings.limits.prompts) == (99, 7, 6)
    assert (settings.pairs[0].model_a, settings.pairs[0].model_b) == ("p-a", "p-b")


def test_paths_beside_the_file_are_taken_from_there(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    path = write(tmp_path, {"pairs": [{**PAIR, "a": {"path": "base"}}]})
    (pair,) = load(path).pairs
    assert (pair.a.path, pair.b.path) == (str((tmp_path / "base").resolve()), "org/tuned")


def test_a_pair_without_a_file() -> None:
    settings = pair_settings("x", "y", dtype="bfloat16", port=0)
    (pair,) = settings.pairs
    assert (pair.a.path, pair.b.path, pair.b.dtype, settings.port) == ("x", "y", "bfloat16", 0)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"pairs": [PAIR], "colour": "blue"}, "colour"),
        ({"pairs": [{**PAIR, "colour": "blue"}]}, "pairs.0.colour"),
        ({"pairs": [{**PAIR, "replicas": 0}]}, "pairs.0.replicas"),
        ({"pairs": [{**PAIR, "launch": "ray"}]}, "belong together"),
        ({"pairs": [{**PAIR, "ray": {"num_gpus": 1}}]}, "belong together"),
        ({"pairs": [{**PAIR, "launch": "ray", "ray": {}}]}, "pairs.0.ray.num_gpus"),
        ({"pairs": [{**PAIR, "replicas": 2, "gpus": ["0"]}]}, "one for each of the replicas"),
        ({"pairs": [{**PAIR, "launch": "ray", "ray": {"num_gpus": 1}, "gpus": ["0"]}]}, "gpus are of"),
        ({"pairs": [{**PAIR, "a": {"paht": "x"}}]}, "pairs.0.a.paht"),
        ({"pairs": [{**PAIR, "b": {}}]}, "b needs either a path or an adapter"),
        ({"pairs": [{**PAIR, "a": {"path": "x", "adapter": "y"}}]}, "takes no adapter"),
        ({"pairs": [{**PAIR, "backend": "abacus"}]}, "pairs.0.backend"),
        ({"pairs": [{**PAIR, "name": "a b"}]}, "pairs.0.name"),
        ({"pairs": [PAIR, PAIR]}, "two pairs are called p"),
        ({"pairs": []}, "pairs"),
        ({"pairs": "x"}, "pairs"),
        (["pairs"], "mapping"),
        ({"limits": {"items": 0}}, "limits.items"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, document: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=r"models\.yaml") as caught:
        load(write(tmp_path, document))
    assert says in caught.value.detail
    assert "\n" not in caught.value.detail


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("pairs: [")
    with pytest.raises(ConfigurationError, match="not YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigurationError, match="not YAML"):
        load(tmp_path / "evil.yaml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_addresses_are_refused_unless_asked_for(host: str) -> None:
    with pytest.raises(ConfigurationError, match="RL_ONOFF_ALLOW_UNAUTHENTICATED"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, allow_unauthenticated=True))
