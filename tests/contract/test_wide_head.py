"""The head's product in tiles: torch's own, however many rows, and only where it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.wide import spec, write_pair
from workers.backends import load_pair
from workers.backends.hf.load import Float32Head
from workers.backends.hf.wide import MOST, TILE, WIDE, product, tile_head


@pytest.mark.parametrize("vocab_size", [TILE, WIDE + 777])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (1, MOST), (MOST + 1,)])
def test_it_is_torchs_product(vocab_size: int, shape: tuple[int, ...]) -> None:
    weight, hidden = torch.randn(vocab_size, 48), torch.randn(*shape, 48)
    got = product(weight, hidden)
    torch.testing.assert_close(got, torch.nn.functional.linear(hidden, weight), rtol=1e-5, atol=1e-5)
    assert got.shape == (*shape, vocab_size)
    assert got.is_contiguous()


class Headed:
    def __init__(self, head: Any) -> None:
        self.head = head

    def get_output_embeddings(self) -> Any:
        return self.head


def test_only_wide_float32_heads_without_a_bias_are_tiled() -> None:
    wide = torch.nn.Linear(8, WIDE, bias=False)
    for head, is_tiled in (
        (wide, True),
        (Float32Head(torch.nn.Linear(8, WIDE, bias=False).bfloat16()), True),
        (torch.nn.Linear(8, WIDE - 1, bias=False), False),
        (torch.nn.Linear(8, WIDE), False),
        (torch.nn.Linear(8, WIDE, bias=False).bfloat16(), False),
        (torch.nn.Sequential(torch.nn.Linear(8, WIDE, bias=False)), False),
    ):
        tile_head(Headed(head))
        assert ("forward" in vars(head)) is is_tiled


def test_half_precision_states_are_widened_first() -> None:
    head = torch.nn.Linear(16, WIDE, bias=False).bfloat16()
    wide = Float32Head(head)
    states = torch.randn(2, 3, 16).bfloat16()
    want = wide(states)
    tile_head(Headed(wide))
    torch.testing.assert_close(wide(states), want, rtol=1e-5, atol=1e-5)
    assert product(wide.weight, states).dtype == torch.float32


@pytest.mark.parametrize("strict", [False, True])
async def test_a_loaded_pair_gives_the_rows_of_plain_transformers(tmp_path: Path, strict: bool) -> None:
    write_pair(tmp_path, vocab_size=WIDE + 100, hidden=64, context=64)
    pair: Any = load_pair(spec(tmp_path, strict=strict))
    try:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
        ids = list(range(5, 25))
        async with pair.b.sequence() as sequence:
            rows = await sequence.rows(ids, 1)
        with torch.inference_mode():
            want = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        torch.testing.assert_close(rows, want, rtol=0, atol=1e-4)
    finally:
        await pair.close()
