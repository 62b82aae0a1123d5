"""What the Hugging Face backend refuses to load, and how it loads what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from rl_onoff.errors import ConfigurationError, LoadError, PairMismatch, UnsupportedModel
from tests.contract import tiny
from tests.contract.conftest import spec
from tests.contract.test_backend import gap
from workers.backends import load_pair
from workers.backends.hf.load import fingerprint
from workers.wire import ModelSpec, WorkerSpec

Folders = dict[str, tuple[Path, Path]]


def copy_with(source: Path, target: Path, change: Any) -> Path:
    """A copy of a model folder whose tokenizer.json went through `change`."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    document = json.loads((target / "tokenizer.json").read_text())
    change(document)
    (target / "tokenizer.json").write_text(json.dumps(document))
    return target


def test_the_first_differing_id_is_named(folders: Folders, tmp_path: Path) -> None:
    def swap(document: Any) -> None:
        vocab = document["model"]["vocab"]
        vocab["A"], vocab["B"] = vocab["B"], vocab["A"]

    a, b = folders["llama"]
    with pytest.raises(PairMismatch, match="id 35 is 'A' in A and 'B' in B"):
        load_pair(spec(a, copy_with(b, tmp_path / "b", swap)))


def test_ids_one_tokenizer_lacks_are_refused_unless_allowed(folders: Folders, tmp_path: Path) -> None:
    def extend(document: Any) -> None:
        document["model"]["vocab"]["extra"] = tiny.VOCAB_SIZE

    a, b = folders["llama"]
    longer = copy_with(b, tmp_path / "b", extend)
    with pytest.raises(PairMismatch, match="A has no id 96, which is 'extra'"):
        load_pair(spec(a, longer))
    pair = load_pair(spec(a, longer, options={"allow_extra_tokens": True}))
    assert pair.info.b.vocab_size == tiny.VOCAB_SIZE
    assert "extra" in pair.info.warnings[0]


def test_what_is_not_there_is_named(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    with pytest.raises(LoadError, match=r"cannot load model b from .*nowhere"):
        load_pair(spec(a, tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="no backend 'nope'"):
        load_pair(WorkerSpec("p", "nope", "", ModelSpec("a", str(a)), ModelSpec("b", str(b))))
    with pytest.raises(ConfigurationError, match="options of pair p"):
        load_pair(spec(a, b, options={"thread": 1}))


def test_a_state_that_cannot_roll_back_is_refused(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["mamba"](
        vocab_size=tiny.COLUMNS, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1, pad_token_id=0
    )
    config.max_position_embeddings = 128
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UnsupportedModel, match=r"mamba\) cannot be run with a cache that rolls back"):
        load_pair(spec(tmp_path / "m", tmp_path / "m"))


def test_fingerprints_follow_the_files(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    same = copy_with(a, tmp_path / "same", lambda document: None)
    (same / "tokenizer.json").write_bytes((a / "tokenizer.json").read_bytes())
    assert fingerprint(a) == fingerprint(same) != fingerprint(b)
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    assert fingerprint(a) != fingerprint(same)


async def test_half_precision_models_compute_their_logits_in_float32(folders: Folders) -> None:
    path = str(folders["llama"][0])
    model = ModelSpec("a", path, dtype="bfloat16", device="cpu")
    pair = load_pair(WorkerSpec("p", "hf", "", model, ModelSpec("b", path, dtype="bfloat16", device="cpu")))
    async with pair.a.sequence() as sequence:
        logits = await sequence.rows([3, 4, 5, 6], 1, logits=True)
    assert pair.info.a.dtype == "bfloat16"
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    await pair.close()


async def test_a_lora_adapter_is_b_over_the_weights_of_a(folders: Folders, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = folders["llama"][0]
    torch.manual_seed(3)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    ids = list(range(10, 40))
    with torch.inference_mode():
        want_b = tuned.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        with tuned.disable_adapter():
            want_a = tuned(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert gap(want_a, want_b) > 0.1

    pair = load_pair(
        WorkerSpec(
            "p",
            "hf",
            "",
            ModelSpec("a", str(base), device="cpu"),
            ModelSpec("b", adapter=str(tmp_path / "adapter"), device="cpu"),
        )
    )
    vocab_size = pair.info.a.vocab_size
    for model, want in ((pair.a, want_a), (pair.b, want_b)):
        async with model.sequence() as sequence:
            rows = await sequence.rows(ids, 1)
        assert gap(rows, want[:, :vocab_size].log_softmax(-1)) < 1e-5
    assert pair.info.a.fingerprint != pair.info.b.fingerprint
    await pair.close()


def test_the_tokenizer_travels_whole(folders: Folders) -> None:
    from tokenizers import Tokenizer

    a, b = folders["qwen2"]
    pair = load_pair(spec(a, b))
    text = "What is 12+30?"
    assert Tokenizer.from_str(pair.info.tokenizer).encode(text).ids == AutoTokenizer.from_pretrained(a)(text).input_ids
