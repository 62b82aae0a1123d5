"""What a full row costs from an SGLang server on this machine: our way and SGLang's own, interleaved in one run.

.venv-sglang/bin/python -m benchmarks.sglang_rows        (the environment of `make test-sglang`)

A random Llama of two layers, so that the row and not the model is measured. Each line: milliseconds a row, medians over
rounds, for requests of `rows` rows after a cached prompt. `draft`: milliseconds a drafted token, its row included.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from operator import itemgetter, truediv
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.backends.sglang.model import SGLangModel
from workers.backends.sglang.pair import SGLangPair, load
from workers.wire import ModelSpec, SamplingParams, WorkerSpec

PROMPT, ROUNDS = 64, 7


def write(folder: Path, vocab_size: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="t1").save_pretrained(folder)


async def own(model: SGLangModel, ids: list[int], start: int, count: int, flat: bool = False) -> np.ndarray[Any, Any]:
    """The rows as a client of the unextended server gets them: the `count` likeliest ids of each, put in order.

    `flat`: as base64 of arrays, SGLang's fastest way, instead of nested JSON.
    """
    assert model._session is not None
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": start - 1,
        "top_logprobs_num": count,
    }
    if flat:
        names = ("return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs")
        body |= dict.fromkeys([*names, "return_flat_raw_top_logprobs_b64"], True)
    async with model._session.post("/generate", json=body) as response:
        meta = msgspec.json.decode(await response.read())["meta_info"]
    rows = np.full((len(ids) - start + 1, model.info.vocab_size), -np.inf, dtype=np.float32)
    if flat:
        values, indices = (
            np.concatenate([array(meta, f"{side}_top_logprobs_{part}_flat_b64") for side in ("input", "output")])
            for part in ("val", "idx")
        )
        np.put_along_axis(rows, indices.reshape(len(rows), -1), values.reshape(len(rows), -1), axis=1)
        return rows
    # The first entry is null: that of the first position has nothing before it.
    for row, entries in zip(rows, [*meta["input_top_logprobs"][1:], meta["output_top_logprobs"][0]], strict=True):
        indices = np.fromiter(map(itemgetter(1), entries), dtype=np.int32, count=len(entries))
        row[indices] = np.fromiter(map(itemgetter(0), entries), dtype=np.float32, count=len(entries))
    return rows


def array(meta: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    if name not in meta:  # of one row there is no input part
        return np.empty(0, dtype=np.float32 if "_val_" in name else np.int32)
    return np.frombuffer(base64.b64decode(meta[name]), dtype=meta[name + "_dtype"])


async def timed(run: Callable[[], Awaitable[Any]]) -> float:
    begin = time.perf_counter()
    await run()
    return time.perf_counter() - begin


async def measure(pair: SGLangPair, vocab_size: int) -> None:
    model = pair.a
    generator = torch.Generator().manual_seed(1)
    async with model.sequence() as sequence:
        for count in (1, 8):
            ids: list[int] = torch.randint(2, vocab_size, (PROMPT + count - 1,), generator=generator).tolist()
            ways: dict[str, Callable[[], Awaitable[Any]]] = {
                "plugin": lambda ids=ids: sequence.rows(ids, PROMPT),  # type: ignore[misc]
                "top_logprobs_num=V": lambda ids=ids: own(model, ids, PROMPT, vocab_size),  # type: ignore[misc]
                "top_logprobs_num=V, flat": lambda ids=ids: own(model, ids, PROMPT, vocab_size, True),  # type: ignore[misc]
                "top_logprobs_num=20": lambda ids=ids: own(model, ids, PROMPT, 20),  # type: ignore[misc]
                "draft": lambda ids=ids, count=count: sequence.draft(  # type: ignore[misc]
                    ids[:PROMPT], count, SamplingParams(), frozenset()
                ),
            }
            ours = (await ways["plugin"]()).numpy()
            for name in ("top_logprobs_num=V", "top_logprobs_num=V, flat"):
                assert np.abs(ours - await ways[name]()).max() < 1e-4, name
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, run in ways.items():
                    seconds[name].append(await timed(run))
            line = {name: round(statistics.median(times) / count * 1e3, 2) for name, times in seconds.items()}
            ratios = {
                f"{name} / plugin": round(statistics.median(map(truediv, seconds[name], seconds["plugin"])), 1)
                for name in ("top_logprobs_num=V", "top_logprobs_num=V, flat")
            }
            print(json.dumps({"vocab_size": vocab_size, "rows": count, **line, **ratios}), flush=True)


async def main() -> None:
    torch.set_num_threads(1)
    for vocab_size in (2_000, 151_936):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), vocab_size)
            sides = [ModelSpec(name, folder, device="cpu", dtype="float32") for name in "ab"]
            pair = load(WorkerSpec("rows", "sglang", "", *sides, options={"server": {"log_level": "error"}}))
            try:
                await measure(pair, vocab_size)
            finally:
                await pair.close()


if __name__ == "__main__":
    asyncio.run(main())
