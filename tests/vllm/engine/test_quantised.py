"""A pair of quantised checkpoints: rows near those of the weights they stand for, lookahead equal to lock-step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.contract import tiny
from tests.contract.conftest import spec
from tests.contract.test_lookahead import run
from workers.backends import load_pair
from workers.wire import SamplingParams, SwitchGenerate

#: Int8 weights, a scale for each output, and activations quantised token by token, as compressed-tensors writes them.
INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
SCHEME: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {**INT8, "strategy": "channel", "dynamic": False},
    "input_activations": {**INT8, "strategy": "token", "dynamic": True},
}
QUANTISED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": SCHEME},
}


def quantise(folder: Path) -> Any:
    """Quantise the checkpoint in place; a model in float32 with the weights that it now stands for."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stored = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        stored[name] = (weight / scale).round().to(torch.int8)
        stored[f"{name}_scale"] = scale
        model.get_parameter(name).data = stored[name] * scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED}))
    return model


async def test_a_quantised_pair(tmp_path: Path) -> None:
    folders = tiny.write_pair(tmp_path, "llama", hidden_size=128, intermediate_size=256, head_dim=32)
    plain = [quantise(folder) for folder in folders]
    pair = load_pair(spec(*folders, sequences=4))
    try:
        ids = torch.randint(5, tiny.VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        for side, model in zip((pair.a, pair.b), plain, strict=True):
            async with side.sequence() as sequence:
                rows = torch.as_tensor(await sequence.rows(ids, 1)).float()
            with torch.inference_mode():
                want = model(input_ids=torch.tensor([ids])).logits[0, :, : tiny.VOCAB_SIZE].log_softmax(-1)
            gap = float((rows - want).abs().mean() / want.std())
            assert 1e-3 < gap < 0.05, "activations are rounded to 8 bits, and weights as they are stored"
        policy = {"kind": "divergence", "on": 0.05}
        texts = [
            await run(pair, SwitchGenerate(ids[:6], 40, SamplingParams(seed=3), policy, ignore_eos=True, lookahead=n))
            for n in (0, None)
        ]
        assert texts[0][:2] == texts[1][:2]
        assert set(texts[0][1]) == {"a", "b"}
    finally:
        await pair.close()
