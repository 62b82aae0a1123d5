"""What whole rows cost out of a vLLM engine, our way and by vLLM's own prompt_logprobs, and what switching costs.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.vllm_rows        (the environment of `make test-vllm`)

Rows: a random Llama of two layers, so that the row and not the model is measured; fresh prompts, the contenders in turn
within each round, one process. vLLM's own are `prompt_logprobs=-1`, as dictionaries and flat, as its output holds them:
putting them in order of token ids, as ours are, would come on top. Milliseconds a row, medians over rounds; the ratios
are medians of each round's. Switching: the shipped pair, milliseconds a token of `batch` requests side by side.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.backends.vllm.pair import VLLMPair, load
from workers.host import answer
from workers.wire import Generate, Job, ModelSpec, SamplingParams, SwitchGenerate, WorkerSpec

DEMO = Path(__file__).parent.parent / "demo"
ROUNDS = 3
#: Rows of a request, for each size of vocabulary. Fewer than a block of the prefix cache: nothing is read from it.
ROWS = {2_000: 24, 151_936: 24}


def write(folder: Path, vocab_size: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="t1").save_pretrained(folder)


def own(engine: Any, ids: list[int], flat: bool) -> Any:
    """`prompt_logprobs` of the whole vocabulary at every position but the first, which has none."""
    from vllm import SamplingParams as Own

    params = Own(max_tokens=1, temperature=0.0, prompt_logprobs=-1, flat_logprobs=flat, detokenize=False)
    engine.add_request(f"own-{ids[:4]}", {"prompt_token_ids": ids}, params)
    found: Any = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            found = output.prompt_logprobs if output.prompt_logprobs is not None else found
    assert found is not None
    assert len(found) == len(ids)
    return found


async def rows(vocab_size: int) -> None:
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), vocab_size)
        model = ModelSpec("a", folder), ModelSpec("b", folder)
        options = {"engine": {"max_logprobs": -1, "logprobs_mode": "raw_logprobs"}}
        pair = load(WorkerSpec("p", "vllm", "", *model, sequences=2, options=options))
        count, times = ROWS[vocab_size], list[dict[str, float]]()
        for _ in range(1 + ROUNDS):  # the first warms up
            times.append({})
            for way in ("ours", "own_dictionaries", "own_flat"):
                ids = [generator.randrange(vocab_size) for _ in range(count + 1)]
                begin = time.perf_counter()
                if way == "ours":
                    async with pair.a.sequence() as sequence:
                        assert (await sequence.rows(ids, 2)).shape == (count, vocab_size)
                else:
                    await pair.compute(own, pair.a._engine, ids, way == "own_flat")
                times[-1][way] = (time.perf_counter() - begin) * 1e3 / count
        await pair.close()
    line: dict[str, Any] = {"vocab_size": vocab_size, "rows": count}
    line |= {way: round(statistics.median(t[way] for t in times[1:]), 3) for way in times[0]}
    for way in list(times[0])[1:]:
        line[f"{way}_over_ours"] = round(statistics.median(t[way] / t["ours"] for t in times[1:]), 1)
    print(json.dumps(line), flush=True)


async def switching(pair: VLLMPair, batch: int, tokens: int = 100) -> None:
    """Milliseconds a token, against A alone in the same round."""
    ids = AutoTokenizer.from_pretrained(DEMO / "base")("Q: 49-8-6+7=").input_ids
    policy = {"kind": "divergence", "on": 0.1}

    async def run(jobs: list[Job]) -> float:
        async def consume(job: Job) -> None:
            async for _ in answer(pair, job):
                pass

        begin = time.perf_counter()
        await asyncio.gather(*(consume(job) for job in jobs))
        return (time.perf_counter() - begin) * 1e3 / tokens

    seeds = [SamplingParams(seed=i) for i in range(batch)]
    ways: dict[str, list[Job]] = {"a_alone": [Generate("a", ids, tokens, s, ignore_eos=True) for s in seeds]}
    for name, lookahead in (("lock_step", 0), ("n=4", 4), ("n=8", 8), ("adaptive", None)):
        ways[name] = [SwitchGenerate(ids, tokens, s, policy, ignore_eos=True, lookahead=lookahead) for s in seeds]
    times = [{name: await run(jobs) for name, jobs in ways.items()} for _ in range(1 + ROUNDS)][1:]
    line: dict[str, Any] = {"pair": "demo", "batch": batch}
    line |= {name: round(statistics.median(t[name] for t in times), 2) for name in ways}
    line["over_a_alone"] = {
        name: round(statistics.median(t[name] / t["a_alone"] for t in times), 2) for name in list(ways)[1:]
    }
    print(json.dumps(line), flush=True)


async def main() -> None:
    for vocab_size in ROWS:
        await rows(vocab_size)
    pair = load(WorkerSpec("p", "vllm", "", ModelSpec("a", str(DEMO / "base")), ModelSpec("b", str(DEMO / "rl"))))
    for batch in (1, 16):
        await switching(pair, batch)
    await pair.close()


if __name__ == "__main__":
    asyncio.run(main())
