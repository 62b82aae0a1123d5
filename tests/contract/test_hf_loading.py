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
from tests.contract.conftest import Case, spec
from tests.contract.test_backend import gap
from workers.backends import load_pair
from workers.backends.hf.load import fingerprint
from workers.backends.hf.selfcheck import memory_warnings
from workers.backends.hf.vocabulary import kept_eos
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


def test_a_contradiction_after_a_lacking_id_is_cut_with_it(folders: Folders, tmp_path: Path) -> None:
    def punch(document: Any) -> None:
        vocab = document["model"]["vocab"]
        del vocab["A"]
        vocab["X"], vocab["Y"] = vocab["Y"], vocab["X"]

    a, b = folders["llama"]
    holed = copy_with(b, tmp_path / "b", punch)
    pair = load_pair(spec(a, holed, options={"allow_extra_tokens": True}))
    assert pair.info.a.vocab_size == 35
    assert "B has no id 35, which is 'A'" in pair.info.warnings[0]


def test_a_cut_that_takes_the_end_of_sequence_is_refused() -> None:
    assert kept_eos("m", [1, 100], 96) == [1]
    with pytest.raises(PairMismatch, match="ends with id 100, which the shared vocabulary of 96 ids lacks"):
        kept_eos("m", [100], 96)


def test_positions_that_depend_on_the_neighbours_are_refused(folders: Folders, tmp_path: Path) -> None:
    for kind, extra in (
        ("dynamic", {"factor": 2.0}),
        ("longrope", {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}),
    ):
        rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 64, **extra}
        a, b = tiny.write_pair(tmp_path / kind, "llama", rope_parameters=rope)
        with pytest.raises(UnsupportedModel, match="set max_len to 64 or less"):
            load_pair(spec(a, b))
        assert load_pair(spec(a, b, max_len=64)).info.a.max_len == 64


def test_max_len_caps_and_never_stretches_the_context(folders: Folders) -> None:
    a, b = folders["gpt2"]
    assert load_pair(spec(a, b, max_len=400)).info.a.max_len == tiny.MAX_LEN
    assert load_pair(spec(a, b, max_len=40)).info.a.max_len == 40


def test_caches_that_cannot_fit_are_warned_of(folders: Folders) -> None:
    a, b = folders["llama"]
    pair = load_pair(spec(a, b))
    assert pair.info.warnings == []
    model = pair.a._cache._model  # type: ignore[attr-defined]
    (warning,) = memory_warnings([model, model], [pair.info.a, pair.info.b], 10**9)
    assert "GB of key-value cache" in warning


def test_broken_files_and_absent_devices_are_load_errors(folders: Folders, tmp_path: Path) -> None:
    a, b = folders["llama"]
    broken = copy_with(b, tmp_path / "b", lambda document: None)
    (broken / "model.safetensors").write_bytes((b / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(LoadError, match="cannot load model b"):
        load_pair(spec(a, broken))
    (tmp_path / "adapter").mkdir()
    adapter = ModelSpec("b", adapter=str(tmp_path / "adapter"))
    with pytest.raises(LoadError, match="cannot load the adapter"):
        load_pair(WorkerSpec("p", "hf", "", ModelSpec("a", str(a), device="cpu"), adapter))
    with pytest.raises(LoadError, match="cannot put model a on device cuda:99"):
        load_pair(WorkerSpec("p", "hf", "", ModelSpec("a", str(a), device="cuda:99"), ModelSpec("b", str(b))))


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


def test_a_pair_says_which_libraries_compute(llama: Case) -> None:
    """The cache keys its rows by them."""
    import transformers

    libraries = llama.pair.info.libraries
    assert (libraries["torch"], libraries["transformers"]) == (torch.__version__, transformers.__version__)
