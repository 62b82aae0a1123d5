"""What a pass takes with attention folded (`workers/backends/hf/attention.py`) and with transformers' own.

A Llama of 12 layers in bfloat16, its weights packed, with keys for every head and shared by seven; both ways take
turns, medians. JSON lines.

    GOMP_SPINCOUNT=5000 python -m benchmarks.attention
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.backends.hf.attention import FOLDED, fold_attention
from workers.backends.hf.packed import pack
from workers.backends.hf.slots import Slot, SlotCache

ROUNDS = 9


def model(heads: int, shared: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=heads * 64,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval().bfloat16()


@torch.inference_mode()
def measure(heads: int, shared: int) -> None:
    """Passes over one token of each sequence, and over drafts of eight, at several lengths."""
    one = model(heads, shared)
    pack(one)
    fold_attention(one)
    cache, slots = SlotCache(one, 8, 4096), [Slot(index) for index in range(8)]
    for context in (64, 256, 1024, 2048):
        for slot in slots:
            cache.forward([slot], [[7] * context], [0], [1])
        for rows, tokens in ((1, 1), (1, 8), (8, 1), (8, 8)):
            taken: dict[str, list[float]] = {"sdpa": [], FOLDED: []}
            for _ in range(ROUNDS):
                for name, times in taken.items():
                    one.set_attn_implementation(name)
                    begin = time.perf_counter()
                    cache.forward(slots[:rows], [[5] * tokens] * rows, [context] * rows, [tokens] * rows)
                    times.append(time.perf_counter() - begin)
            plain, folded = (statistics.median(times) for times in taken.values())
            line = {"heads": heads, "shared": shared, "context": context, "sequences": rows, "tokens": tokens}
            found = {"folded_ms": round(folded * 1e3, 1), "plain_over_folded": round(plain / folded, 2)}
            print(json.dumps(line | found), flush=True)


def main() -> None:
    with ThreadPoolExecutor(1) as executor:  # in one thread, as the engine: OpenMP has threads for each
        for heads, shared in ((12, 12), (14, 2)):
            executor.submit(measure, heads, shared).result()


if __name__ == "__main__":
    main()
