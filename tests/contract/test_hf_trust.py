"""Code that a model's folder brings along does not run: no pickles, no custom classes unless the operator says so."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from rl_onoff.errors import LoadError
from tests.contract.conftest import spec
from tests.contract.test_hf_loading import copy_with
from workers.backends import load_pair
from workers.wire import ModelSpec, WorkerSpec

Folders = dict[str, tuple[Path, Path]]


class Planted:
    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def test_pickled_weights_are_refused(folders: Folders, tmp_path: Path, marker: Path) -> None:
    a, b = folders["llama"]
    planted = copy_with(b, tmp_path / "b", lambda document: None)
    (planted / "model.safetensors").unlink()
    (planted / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(marker)))
    with pytest.raises(LoadError, match="cannot load model b"):
        load_pair(spec(a, planted))
    assert not marker.exists()


def test_a_pickled_adapter_is_refused(folders: Folders, tmp_path: Path, marker: Path) -> None:
    a, _ = folders["llama"]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Planted(marker)))
    with pytest.raises(LoadError, match="cannot load the adapter"):
        load_pair(WorkerSpec("p", "hf", "", ModelSpec("a", str(a), device="cpu"), ModelSpec("b", adapter=str(adapter))))
    assert not marker.exists()


def test_custom_classes_are_not_imported(folders: Folders, tmp_path: Path, marker: Path) -> None:
    a, b = folders["llama"]
    planted = copy_with(b, tmp_path / "b", lambda document: None)
    config = json.loads((planted / "config.json").read_text())
    config |= {"model_type": "planted", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (planted / "config.json").write_text(json.dumps(config))
    (planted / "code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nC = M = object\n")
    with pytest.raises(LoadError):
        load_pair(spec(a, planted))
    assert not marker.exists()
