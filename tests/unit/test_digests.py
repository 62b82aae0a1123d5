"""Digests of files: the contents', whatever is remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from workers.backends import digests
from workers.backends.digests import Digests

CONTENT = b"weights" * 200_000


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rl-onoff/digests.json"


def of(path: Path) -> bytes:
    known = Digests.load()
    digest = known.of(path)
    known.save()
    return digest


def test_a_file_is_read_once(tmp_path: Path, remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    assert of(path) == hashlib.sha256(CONTENT).digest()
    assert remembered.exists()
    monkeypatch.setattr(digests.hashlib, "file_digest", None)  # type: ignore[attr-defined]
    assert of(path) == hashlib.sha256(CONTENT).digest()


def test_a_changed_file_is_read_again_even_if_its_time_is_set_back(tmp_path: Path, remembered: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    before = path.stat()
    of(path)
    other = CONTENT[:-1] + b"x"
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert of(path) == hashlib.sha256(other).digest()
    assert remembered.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": "y"}'])
def test_a_broken_memory_is_forgotten(tmp_path: Path, remembered: Path, content: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    remembered.parent.mkdir(parents=True)
    remembered.write_text(content)
    assert of(path) == hashlib.sha256(CONTENT).digest()


def test_a_home_that_cannot_be_written_to_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    assert of(path) == hashlib.sha256(CONTENT).digest()
