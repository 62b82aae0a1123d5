"""Switched generation: lookahead against lock-step, each model alone, transformers' own loop, and naive recomputation.

    GOMP_SPINCOUNT=5000 python -m benchmarks.lookahead --ratio 1 4 --shares 0.02 0.1 --batch 1 8 > docs/lookahead.jsonl

The environment is the one a worker is started with where it is the only one (`workers.launch.local`).
Every round runs each contender once, one after the other; what is reported is the median over rounds of the ratio to
lock-step in the same round, so a machine that slows down slows both. Switched runs that differ from lock-step are
counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from benchmarks.pairs import VOCAB_SIZE, build
from rl_onoff.policy import Lead
from workers.backends import load_pair
from workers.backends.base import Pair
from workers.host import answer
from workers.memory import keep_freed_memory
from workers.wire import Generate, ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

PROMPT_TOKENS = 32
T = TypeVar("T")


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    ids: list[list[int]] = torch.randint(VOCAB_SIZE, (count, PROMPT_TOKENS), generator=generator).tolist()
    return ids


async def run(pair: Pair, job: Any) -> tuple[list[int], str, list[float], Any]:
    ids: list[int] = []
    leads, values, usage = "", [], None
    async for frame in answer(pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
            values += frame.values.get("js", [])
            usage = frame.usage
    return ids, leads, values, usage


def apart(work: Callable[[], T]) -> T:
    """In a thread that ends: one that stays keeps OpenMP's threads; with more of them than processors none spins."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


class ForwardClock:
    """Seconds spent in the models' forward passes, drawing and judging left out."""

    def __init__(self, pair: Any) -> None:
        self.seconds = 0.0
        for model in (pair.a, pair.b):
            model.forward = self._timed(model.forward)

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            rows = forward(*args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - begin
            return rows

        return run


class Bench:
    def __init__(self, pair: Pair, strict: Pair | None, plain_a: Any, plain_b: Any, batch: int, tokens: int) -> None:
        self.pair, self.strict, self.plain = pair, strict, (plain_a, plain_b)
        self.clock = ForwardClock(pair)
        self.prompts, self.tokens = prompts(batch), tokens
        self.on = 0.0

    def jobs(self, lookahead: int | None) -> list[SwitchGenerate]:
        policy = {"kind": "divergence", "on": self.on}
        return [
            SwitchGenerate(ids, self.tokens, SamplingParams(seed=i), policy, lookahead=lookahead)
            for i, ids in enumerate(self.prompts)
        ]

    async def calibrate(self, share: float) -> float:
        """The threshold at which B leads about `share` of the tokens, from A's own texts; the share it gives."""
        job = {"kind": "always_a"}
        traces = await asyncio.gather(
            *(
                run(self.pair, SwitchGenerate(ids, 200, SamplingParams(seed=90 + i), job))
                for i, ids in enumerate(prompts(4))
            )
        )
        values = sorted(value for trace in traces for value in trace[2])
        tried: list[tuple[float, float, float]] = []  # distance from the share asked for, threshold, share
        above = share
        for _ in range(4):
            self.on = values[min(len(values) - 1, round((1 - above) * len(values)))]
            leads = "".join(result[1] for result in await self.switched(None))
            got = leads.count("b") / len(leads)
            tried.append((abs(got - share), self.on, got))
            above = min(0.9, above * max(0.3, min(3.0, share / got if got else 3.0)))
        _, self.on, got = min(tried)
        return got

    async def switched(self, lookahead: int | None, pair: Pair | None = None) -> list[Any]:
        return await asyncio.gather(*(run(pair or self.pair, job) for job in self.jobs(lookahead)))

    async def alone(self, side: Lead, requests: int | None = None) -> list[Any]:
        prompts = self.prompts[:requests]
        jobs = [Generate(side, ids, self.tokens, SamplingParams(seed=i)) for i, ids in enumerate(prompts)]
        return await asyncio.gather(*(run(self.pair, job) for job in jobs))

    async def transformers(self) -> None:
        """A alone by `generate`, which samples with torch.multinomial; in the thread that has OpenMP's threads."""
        await self.pair.compute(
            lambda: self.plain[0].generate(
                torch.tensor(self.prompts),
                attention_mask=torch.ones(len(self.prompts), PROMPT_TOKENS, dtype=torch.long),
                max_new_tokens=self.tokens,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )
        )

    async def naive(self) -> None:
        """Both models over the whole prefix at every token, without a cache; a quarter of the tokens."""

        def recompute() -> None:
            with torch.inference_mode():
                ids = torch.tensor(self.prompts, device=self.plain[0].device)
                for _ in range(self.tokens // 4):
                    rows = [
                        m(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
                        for m in self.plain
                    ]
                    ids = torch.cat([ids, rows[0].argmax(-1, keepdim=True)], 1)

        await self.pair.compute(recompute)


async def measure(bench: Bench, rounds: int, full: bool) -> dict[str, Any]:
    contenders: dict[str, Callable[[], Awaitable[Any]]] = {
        "lockstep": lambda: bench.switched(0),
        "adaptive": lambda: bench.switched(None),
        "fixed_4": lambda: bench.switched(4),
        "fixed_8": lambda: bench.switched(8),
        "a_alone": lambda: bench.alone("a"),
        "b_alone": lambda: bench.alone("b"),
    }
    requests = len(bench.prompts)
    if requests > 1:
        contenders["a_alone_one_request"] = lambda: bench.alone("a", 1)
    if full:
        contenders |= {
            "transformers_a": bench.transformers,
            "naive": bench.naive,
        }
    if bench.strict is not None:
        contenders |= {
            "strict_lockstep": lambda: bench.switched(0, bench.strict),
            "strict_adaptive": lambda: bench.switched(None, bench.strict),
        }
    outside: dict[str, list[float]] = {name: [] for name in ("lockstep", "adaptive", "a_alone")}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    reference: list[Any] = []
    differing = 0
    usage: list[Any] = []
    for _ in range(rounds):
        for name, contender in contenders.items():
            begin, in_forwards = time.perf_counter(), bench.clock.seconds
            result = await contender()
            elapsed = time.perf_counter() - begin
            if name in outside:
                outside[name].append(elapsed - (bench.clock.seconds - in_forwards))
            # What each would take for all the tokens.
            times[name].append(elapsed * {"naive": 4, "a_alone_one_request": requests}.get(name, 1))
            if name == "lockstep":
                reference = [run[:2] for run in result]
            elif name in ("adaptive", "fixed_4", "fixed_8"):
                differing += sum(run[:2] != other for run, other in zip(result, reference, strict=True))
            if name == "adaptive":
                usage = [run[3] for run in result]
    made = bench.tokens * requests
    drafted = sum(u.drafted for u in usage)
    return {
        "tokens_per_s": {name: round(made / statistics.median(column), 1) for name, column in times.items()},
        "speed_over_lockstep": {
            name: round(statistics.median(a / b for a, b in zip(times["lockstep"], column, strict=True)), 2)
            for name, column in times.items()
        },
        "a_alone_over_transformers": (
            round(statistics.median(a / b for a, b in zip(times["transformers_a"], times["a_alone"], strict=True)), 2)
            if full
            else None
        ),
        "a_alone_over_one_request": (
            round(
                statistics.median(a / b for a, b in zip(times["a_alone_one_request"], times["a_alone"], strict=True)), 2
            )
            if requests > 1
            else None
        ),
        "outside_forwards_ms_per_token": {
            name: round(1e3 * statistics.median(column) / made, 2) for name, column in outside.items()
        },
        "runs_differing_from_lockstep": differing,
        "accepted_of_drafted": round(sum(u.accepted for u in usage) / drafted, 3) if drafted else None,
        "tokens_per_b_forward": round(made / sum(u.b_forwards for u in usage), 2),
    }


async def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    for ratio in options.ratio:
        for share in options.shares:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                shape = {"layers": options.layers, "hidden": options.hidden, "ratio": ratio}
                apart(partial(build, folder, **shape, triggers=share, dtype=dtype))
                sides = [ModelSpec(side, str(folder / side), device=options.device) for side in "ab"]
                pair, strict = (
                    load_pair(WorkerSpec("bench", "hf", "", *sides, sequences=max(options.batch), options=extra))
                    if wanted
                    else None
                    for extra, wanted in (({}, True), ({"strict": True}, options.strict))
                )
                assert pair is not None
                plain = [
                    apart(partial(AutoModelForCausalLM.from_pretrained, folder / side, dtype=dtype))
                    .eval()
                    .to(options.device)
                    for side in "ab"
                ]
                for batch in options.batch:
                    bench = Bench(pair, strict, *plain, batch, options.tokens)
                    got = await bench.calibrate(share)
                    result = await measure(bench, options.rounds, full=share == options.shares[0])
                    line = {
                        "ratio": ratio,
                        "share_asked": share,
                        "share": round(got, 4),
                        "batch": batch,
                        "tokens": options.tokens,
                        "rounds": options.rounds,
                        "dtype": options.dtype,
                        "parameters": [pair.info.a.parameters, pair.info.b.parameters],
                        "machine": f"{platform.machine()} {options.device}, {options.threads} threads",
                        **result,
                    }
                    print(json.dumps(line), flush=True)
                await pair.close()
                if strict is not None:
                    await strict.close()


if __name__ == "__main__":
    keep_freed_memory()  # as a worker does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, nargs="+", default=[1, 4], help="parameters of B over those of A")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3], help="of tokens led by B")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    # Its engine has OpenMP's threads of its own; where these are then more than processors, none of either's spins.
    parser.add_argument("--strict", action="store_true", help="the pair with `strict`, too")
    parser.add_argument("--threads", type=int, default=2)
    asyncio.run(main(parser.parse_args()))
