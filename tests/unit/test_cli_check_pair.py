"""`rl-onoff check-pair` on folders written here: what makes a pair, what does not, and what is merely said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rl_onoff.cli import app
from rl_onoff.cli.folders import read
from rl_onoff.cli.pairs import Finding, compare

VOCABULARY = {"a": 0, "b": 1, "ab": 2}


def folder(path: Path, **changes: Any) -> Path:
    """A model folder; `vocab`, `added`, `config`, `generation`, `template`, `merges` change it."""
    path.mkdir()
    model = {"type": "BPE", "vocab": changes.get("vocab", VOCABULARY), "merges": changes.get("merges", [["a", "b"]])}
    added = changes.get("added", [{"id": 3, "content": "<eos>"}])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "eos_token_id": 3,
    }
    write(path / "tokenizer.json", {"model": model, "added_tokens": added, "normalizer": None})
    write(path / "config.json", config | changes.get("config", {}))
    if "generation" in changes:
        write(path / "generation_config.json", changes["generation"])
    if "template" in changes:
        write(path / "tokenizer_config.json", {"chat_template": changes["template"]})
    return path


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def check(a: Path | str, b: Path | str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check-pair", "--a", str(a), "--b", str(b)])


def findings(a: Path, b: Path) -> dict[str, Finding]:
    return {finding.aspect: finding for finding in compare(read(a), read(b))}


def test_a_pair(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    result = check(a, b)
    assert result.exit_code == 0
    assert "every id means the same in both" in result.stdout
    assert "divergences are over the 4 ids both models know" in result.stdout
    assert result.stderr == "These two are a pair.\n"
    assert {finding.verdict for finding in findings(a, b).values()} == {"same"}


def test_the_first_id_that_differs_is_named_with_both_pieces(tmp_path: Path) -> None:
    other = folder(tmp_path / "b", vocab={"a": 0, "ab": 1, "b": 2})
    result = check(folder(tmp_path / "a"), other)
    assert result.exit_code == 1
    assert "These two are no pair: id 1 is 'b' in A and 'ab' in B" in result.stderr


@pytest.mark.parametrize(("more_in", "lacking"), [("a", "B"), ("b", "A")])
def test_tokens_only_one_has(tmp_path: Path, more_in: str, lacking: str) -> None:
    more = [{"id": 3, "content": "<eos>"}, {"id": 4, "content": "<think>"}]
    sides = {name: folder(tmp_path / name, **({"added": more} if name == more_in else {})) for name in "ab"}
    result = check(sides["a"], sides["b"])
    assert result.exit_code == 1
    assert f"{lacking} has no id 4, which is '<think>' in the other" in result.stderr
    assert "allow_extra_tokens" in result.stderr


def test_what_differs_without_harm(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", template="x", generation={"temperature": 0.6, "eos_token_id": [3, 2]})
    b = folder(
        tmp_path / "b",
        merges=[],
        config={"vocab_size": 128, "max_position_embeddings": 256, "architectures": ["QwenForCausalLM"]},
    )
    assert check(a, b).exit_code == 0
    found = findings(a, b)
    different = {aspect for aspect, finding in found.items() if finding.verdict == "differs"}
    assert different == {
        "text to tokens",
        "logit columns",
        "context",
        "end of text",
        "chat template",
        "generation defaults",
        "architecture",
    }
    assert "model" in found["text to tokens"].meaning
    assert found["context"].meaning == "256 tokens"
    assert (found["end of text"].a, found["end of text"].b) == ("2, 3", "3")
    assert found["generation defaults"].a == "temperature 0.6"


def test_layouts_of_other_models(tmp_path: Path) -> None:
    unigram = folder(tmp_path / "unigram", vocab=[["a", -1.0], ["b", -2.0], ["ab", -3.0]])
    assert read(unigram).pieces == read(folder(tmp_path / "bpe")).pieces
    nested = folder(tmp_path / "nested", config={"text_config": {"vocab_size": 7, "max_position_embeddings": 9}})
    assert (read(nested).columns, read(nested).context) == (7, 9)
    named = folder(
        tmp_path / "named", template=[{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]
    )
    assert read(named).chat_template == "x"
    (named / "chat_template.jinja").write_text("z", encoding="utf-8")
    assert read(named).chat_template == "z"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", None, "holds no tokenizer.json"),
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "holds no JSON object"),
        ("tokenizer.json", "{}", "holds no vocabulary"),
    ],
)
def test_a_folder_that_is_none(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    broken = folder(tmp_path / "b")
    (broken / name).unlink()
    if text is not None:
        (broken / name).write_text(text, encoding="utf-8")
    result = check(folder(tmp_path / "a"), broken)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no folder" in check(tmp_path / "x", tmp_path / "y").stderr


def test_a_hub_id_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = check("org/base", "org/rl")
    assert result.exit_code == 1
    assert "pip install huggingface_hub" in result.stderr


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder(tmp_path / "base")
    asked: list[tuple[str, list[str]]] = []

    def download(source: str, *, allow_patterns: list[str]) -> str:
        asked.append((source, allow_patterns))
        if source.endswith("gone"):
            raise OSError("offline")
        return str(tmp_path / "base")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert check("org/base", tmp_path / "base").exit_code == 0
    assert asked == [("org/base", ["*.json", "*.jinja"])]  # no weights
    result = check("org/gone", tmp_path / "base")
    assert result.exit_code == 1
    assert "offline" in result.stderr
