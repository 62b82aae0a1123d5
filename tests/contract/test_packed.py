"""Packed weights: the products of plain ones, wherever a model lets go of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract import tiny
from tests.contract.test_lookahead import cases, equal, loaded, typical_divergences
from workers.backends.hf.invariant import make_invariant
from workers.backends.hf.load import upcast_head
from workers.backends.hf.packed import WORTH, PackedLinear, pack

WIDE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 704, "head_dim": 192, "num_hidden_layers": 2}
IDS = torch.tensor([[5, 9, 40, 41, 7, 80, 3]])


def model(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    path = tiny.write_model(folder / "model", "llama", seed=1, **{**WIDE, **changes})
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().requires_grad_(False)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits[0].float()
    return found


def packed(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def assert_alike(have: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert float((have - want).abs().max()) <= tolerance * float(want.std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (40,), (0,)])
@torch.inference_mode()
def test_a_packed_layer_is_the_plain_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    plain = torch.nn.Linear(96, 200).to(dtype)
    layer = PackedLinear(plain)
    inputs = torch.randn(*shape, 192).to(dtype)[..., ::2]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=tolerance, atol=tolerance)
    layer.pack()
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=tolerance, atol=tolerance)
    assert layer.weight.shape == plain.weight.shape
    assert layer.weight.dtype == dtype
    with pytest.raises(RuntimeError):
        layer.weight.sum().item()


def test_wide_layers_are_packed_and_give_the_same_logits(tmp_path: Path) -> None:
    wide = model(tmp_path)
    before = logits(wide)
    pack(wide)
    assert packed(wide) == {
        f"model.layers.{i}.{name}"
        for i in range(2)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    assert_alike(logits(wide), before)
    first = packed(wide)
    pack(wide)
    assert packed(wide) == first


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_is_packed_unless_it_is_the_input_embedding_too(tmp_path: Path, tied: bool) -> None:
    wide = model(tmp_path, vocab_size=1000, tie_word_embeddings=tied)
    before = logits(wide)
    pack(wide)
    assert ("lm_head" in packed(wide)) is not tied
    assert_alike(logits(wide), before)


def test_a_float32_head_of_a_model_in_half_precision_is_packed(tmp_path: Path) -> None:
    wide = model(tmp_path, torch.bfloat16, vocab_size=1000, tie_word_embeddings=True)
    upcast_head(wide)
    before = logits(wide)
    pack(wide)
    assert isinstance(wide.lm_head, PackedLinear)
    assert wide.lm_head.weight.dtype == torch.float32
    assert_alike(logits(wide), before, 0.1)


def test_what_has_no_kernel_or_is_narrow_stays(tmp_path: Path) -> None:
    double = model(tmp_path, torch.float64)
    pack(double)
    assert packed(double) == set()
    layer = torch.nn.Linear(WORTH // 64 - 1, 64)
    holder: Any = torch.nn.Sequential(layer)
    pack(holder)
    assert holder[0] is layer


def test_a_model_that_reads_its_weights_keeps_them(tmp_path: Path) -> None:
    wide = model(tmp_path)
    attention = wide.model.layers[1].mlp
    forward = attention.forward
    attention.forward = lambda hidden: forward(hidden) + attention.up_proj.weight.mean()
    before = logits(wide)
    pack(wide)
    assert packed(wide) == set()
    assert torch.equal(logits(wide), before)


def test_the_plain_weights_are_given_up(tmp_path: Path) -> None:
    wide = model(tmp_path)
    held = sum(weight.numel() for weight in wide.parameters() if weight.device.type != "meta")
    pack(wide)
    kept = sum(weight.numel() for weight in wide.parameters() if weight.device.type != "meta")
    assert kept < 0.5 * held
    assert all(module._plain is None for module in wide.modules() if isinstance(module, PackedLinear))


@pytest.mark.parametrize(("dtype", "strict"), [("float32", False), ("float32", True), ("bfloat16", True)])
async def test_lookahead_over_packed_weights_is_lock_step(tmp_path: Path, dtype: str, strict: bool) -> None:
    folders = tiny.write_pair(tmp_path, "llama", **WIDE)
    async with loaded(folders, dtype, sequences=8, options={"strict": strict}) as pair:
        assert packed(pair.a._cache._model)  # type: ignore[attr-defined]
        if strict:
            assert set(pair.info.noise.values()) == {0.0}
        # Logits of so wide a random model are in the hundreds: their last bits move a divergence by 1e-5.
        await equal(pair, cases(pair, await typical_divergences(pair), 12, seed=3), 1e-3)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strict_products_over_packed_weights_do_not_depend_on_what_is_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, independent: bool
) -> None:
    """Also on a processor whose kernels do not see to it by themselves."""
    wide = model(tmp_path, dtype)
    pack(wide)
    layer = wide.model.layers[0].mlp.up_proj
    plain = layer.forward
    if not independent:
        monkeypatch.setattr("workers.backends.hf.invariant._independent", lambda _: False)
    make_invariant(wide)
    make_invariant(wide)
    with torch.inference_mode():
        rows = torch.randn(2, 150, 768).to(dtype)
        together = layer(rows)
        for count in (1, 2, 3, 5, 16, 17, 33, 64, 65, 130):
            assert torch.equal(layer(rows[1, 7 : 7 + count]), together[1, 7 : 7 + count])
        assert layer(rows[:, :0]).shape == (2, 0, 704)
        torch.testing.assert_close(together, plain(rows), rtol=0.02, atol=0.005)


async def test_packing_can_be_turned_off(tmp_path: Path) -> None:
    folders = tiny.write_pair(tmp_path, "llama", **WIDE)
    async with loaded(folders, "float32", options={"packed": False}) as pair:
        assert not packed(pair.a._cache._model)  # type: ignore[attr-defined]
