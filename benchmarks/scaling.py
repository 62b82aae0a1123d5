"""What pairs of 7B, 32B and 70B models cost on H100 and H200 GPUs, computed; and what the service costs, measured.

    .venv/bin/python -m benchmarks.scaling             the tables of docs/scaling.md, from shapes and datasheets
    .venv/bin/python -m benchmarks.scaling --measure   CPU time of the service's process for a token and for a row

A forward pass takes what its slowest part takes: reading weights and keys and values from memory, or computing. On g
GPUs both are shared, and two all-reduces a layer are added. No GPU was at hand: nothing computed was checked on one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from workers.pace import LENGTHS

# What is assumed, beyond datasheets.
MEMORY_SHARE = 0.7  # of the datasheet's bandwidth, in passes over few tokens
COMPUTE_SHARE = 0.5  # of the datasheet's dense bfloat16 rate, in passes over many
ALL_REDUCE = 10e-6  # seconds, before the first byte
PASS_OVERHEAD = 0.5e-3  # seconds of scheduling and launching a pass, that nothing hides
MEMORY_USED = 0.9  # of a GPU's memory, for weights and keys and values
CONTEXT = 2_000  # tokens of each sequence
KEPT_CONTEXTS = 32 * CONTEXT  # what a layout must have room for
PREFILL = 2_048  # tokens of a scoring pass
BROKEN = 0.03  # share of positions at which a draft breaks, where one is needed

# What `--measure` measured, rounded up: CPU microseconds of the service's process.
SERVICE_TOKEN = 90  # a switched token, streamed
SERVICE_POSITION = 100  # a position's divergences, as JSON
SERVICE_ROW = 1_500  # a whole row of V = 151,936, as safetensors


@dataclass(frozen=True)
class Model:
    """Shapes from the published config.json; embeddings and head are two matrices."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 128

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def body(self) -> int:
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weight_bytes(self) -> int:
        """In memory: bfloat16, the head in float32 as the backends keep it."""
        return 2 * (self.body + self.head) + 4 * self.head

    @property
    def read_bytes(self) -> int:
        """Of weights, by a pass: all but the table of embeddings."""
        return 2 * self.body + 4 * self.head

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class Gpu:
    """From NVIDIA's datasheets, SXM; the rate is dense bfloat16, half of the datasheet's with sparsity."""

    name: str
    memory: float
    bandwidth: float
    rate: float = 989.4e12
    link: float = 450e9  # NVLink, each way


MODELS = (
    Model("7B (Qwen2.5)", 28, 3584, 18944, 28, 4, 152_064),
    Model("32B (Qwen2.5)", 64, 5120, 27648, 40, 8, 152_064),
    Model("70B (Llama 3.1)", 80, 8192, 28672, 64, 8, 128_256),
)
GPUS = (Gpu("H100", 80e9, 3.35e12), Gpu("H200", 141e9, 4.8e12))


def pass_seconds(model: Model, gpu: Gpu, count: int, rows: int, tokens: int, context: int = CONTEXT) -> float:
    """Of a pass over `tokens` new tokens of each of `rows` sequences, on `count` GPUs."""
    positions = rows * tokens
    moved = model.read_bytes + rows * context * model.kv_bytes + 4 * positions * model.vocab
    work = positions * (2 * (model.body + model.head) + 4 * model.layers * model.heads * model.head_dim * context)
    seconds = max(moved / (gpu.bandwidth * MEMORY_SHARE), work / (gpu.rate * COMPUTE_SHARE)) / count
    if count > 1:
        each = 2 * (count - 1) / count * positions * model.hidden * 2 / gpu.link
        seconds += 2 * model.layers * (ALL_REDUCE + each)
    return seconds + PASS_OVERHEAD


def lookahead_seconds(model: Model, gpu: Gpu, count: int, rows: int, broken: float) -> tuple[float, int]:
    """A token of each of `rows` requests, and the best length of drafts: `workers.pace`, B as large as A.

    `broken` is the share of positions at which A's draft breaks; a draft of n brings (1 - (1-h)^n)/h tokens.
    """
    one = pass_seconds(model, gpu, count, rows, 1)

    def cost(n: int) -> float:
        return (n * one + pass_seconds(model, gpu, count, rows, n)) / ((1 - (1 - broken) ** n) / broken)

    best = min(LENGTHS, key=cost)
    return cost(best), best


def room(model: Model, gpu: Gpu, count: int) -> float:
    """Tokens of keys and values of both models that fit beside both models' weights."""
    return (count * gpu.memory * MEMORY_USED - 2 * model.weight_bytes) / (2 * model.kv_bytes)


def layout(model: Model, gpu: Gpu) -> int:
    """The fewest GPUs, of 1, 2, 4, 8, that hold both models and `KEPT_CONTEXTS`."""
    return next(count for count in (1, 2, 4, 8) if room(model, gpu, count) >= KEPT_CONTEXTS)


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    header = list(header)
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def print_tables() -> None:
    combinations = [(model, gpu) for model in MODELS for gpu in GPUS]
    table(
        ["each model", "parameters", "GB in memory", "kB of keys and values a token"],
        [
            [m.name, f"{(m.body + 2 * m.head) / 1e9:.1f}e9", f"{m.weight_bytes / 1e9:.1f}", f"{m.kv_bytes / 1e3:.0f}"]
            for m in MODELS
        ],
    )
    table(
        ["pair", "GPU", *(f"{n} GPUs" if n > 1 else "1 GPU" for n in (1, 2, 4, 8)), "fewest"],
        [
            [m.name, g.name]
            + [f"{r / 1e3:,.0f}k" if (r := room(m, g, n)) > 0 else "no" for n in (1, 2, 4, 8)]
            + [str(layout(m, g))]
            for m, g in combinations
        ],
    )
    for rows in (1, 32):
        print(f"{rows} request{'s' * (rows > 1)} at a time, milliseconds a token of each:\n")
        lines = []
        for m, g in combinations:
            n = layout(m, g)
            alone = pass_seconds(m, g, n, rows, 1)
            line = [m.name, f"{n} {g.name}", f"{alone * 1e3:.1f}", f"{2 * alone * 1e3:.1f}"]
            for broken in (0.01, BROKEN, 0.1):
                seconds, best = lookahead_seconds(m, g, n, rows, broken)
                line.append(f"{seconds * 1e3:.1f} (n = {best})")
            lines.append([*line, f"{rows / lookahead_seconds(m, g, n, rows, BROKEN)[0] / n:,.0f}"])
        table(["pair", "on", "A alone", "lock-step", "h = 1%", "h = 3%", "h = 10%", "tokens/s a GPU, h = 3%"], lines)
    print(f"Scoring, passes of {PREFILL:,} tokens through both models:\n")
    lines = []
    for m, g in combinations:
        n = layout(m, g)
        row = 2 * pass_seconds(m, g, n, 1, PREFILL, PREFILL // 2) / PREFILL
        whole = 4 * m.vocab
        lines.append([m.name, f"{n} {g.name}", f"{row * 1e6:.0f}", f"{1 / row / n:,.0f}", f"{whole / row / 1e9:.1f}"])
    table(["pair", "on", "us a position", "positions/s a GPU", "GB/s if all rows of a model left"], lines)


def print_layouts() -> None:
    """Twice the GPUs a pair needs, three ways; 32 requests in all."""
    print("Twice those GPUs, 32 requests, h = 3%: milliseconds a token of each, and tokens/s in all\n")
    lines = []
    for m, g in ((m, g) for m in MODELS for g in GPUS if 2 * layout(m, g) <= 8):
        n = layout(m, g)
        ways = (
            lookahead_seconds(m, g, n, 16, BROKEN)[0],
            lookahead_seconds(m, g, 2 * n, 32, BROKEN)[0],
            lookahead_seconds(m, g, n, 32, BROKEN)[0],
        )
        lines.append([m.name, f"{2 * n} {g.name}", *(f"{way * 1e3:.1f} / {32 / way:,.0f}" for way in ways)])
    table(["pair", "on", "two replicas", "one, both models over all GPUs", "A on one half, B on the other"], lines)


def print_service() -> None:
    print("Processes of the service that so many GPUs keep busy, rounded up:\n")
    lines = []
    for m, g in ((m, g) for m in MODELS for g in GPUS):
        n = layout(m, g)
        tokens = 32 / lookahead_seconds(m, g, n, 32, BROKEN)[0] / n
        positions = PREFILL / (2 * pass_seconds(m, g, n, 1, PREFILL, PREFILL // 2)) / n
        each = ((tokens, SERVICE_TOKEN), (positions, SERVICE_POSITION), (2 * positions, SERVICE_ROW))
        for_gpus = [" / ".join(str(ceil(c * rate * us * 1e-6)) for rate, us in each) for c in (10, 100, 1000)]
        lines.append([m.name, g.name, *for_gpus])
    table(["pair", "GPU", "10", "100", "1,000 (switching / divergences / whole rows of one model)"], lines)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure() -> None:
    """The service's own process, its workers' time left out: CPU time does not hang on how busy the machine is."""
    import httpx
    import torch

    from benchmarks.wide import write_pair
    from tests.e2e.running_service import running, table_pair

    def spent(pid: int, url: str, path: str, body: dict[str, Any], requests: int) -> float:
        def ask(seed: int) -> None:
            sent = {**body, **({"sampling": {**body["sampling"], "seed": seed}} if "sampling" in body else {})}
            headers = {"Accept": "application/vnd.safetensors"} if path == "/distributions" else {}
            with httpx.stream("POST", url + path, json=sent, headers=headers, timeout=300) as response:
                assert response.status_code == 200, response.read()
                for _ in response.iter_raw():
                    pass

        ask(0)
        before = cpu_seconds(pid)
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return cpu_seconds(pid) - before

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(folder, {"pairs": [table_pair(folder, endless=True, delay=0.01, max_len=10_000)]}) as service:
            for what, path, more in (
                ("switched, streamed", "/switch-generate", {"stream": True}),
                ("switched, whole", "/switch-generate", {}),
                ("one model, streamed", "/generate", {"model": "base", "stream": True}),
                ("one model, whole", "/generate", {"model": "base"}),
            ):
                body = {"prompt": "b", "sampling": {"max_tokens": 300}, **more}
                each = [spent(service.process.pid, service.url, path, body, 16) / (16 * 300) for _ in range(3)]
                print(json.dumps({"what": what, "service_us_a_token": [round(1e6 * one) for one in each]}))
    with tempfile.TemporaryDirectory() as name:
        folder, vocab = Path(name), 151_936
        write_pair(folder, vocab_size=vocab, hidden=16, context=256, dtype=torch.float32)
        sides = {side: {"name": side, "path": str(folder / side), "device": "cpu"} for side in "ab"}
        document = {"pairs": [{"name": "wide", "backend": "hf", **sides}], "cache_bytes": 0}
        with running(folder, document) as service:
            item = {"prompt_ids": list(range(8)), "solution_ids": list(range(100, 228))}
            for what, path, body in (
                ("whole rows, V = 151,936", "/distributions", {"model": "a", "items": [item]}),
                ("divergences", "/divergence", {"a": "a", "b": "b", "items": [item]}),
            ):
                each = [spent(service.process.pid, service.url, path, body, 4) / (4 * 128) for _ in range(3)]
                print(json.dumps({"what": what, "service_us_a_position": [round(1e6 * one) for one in each]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the service and measure it")
    if parser.parse_args().measure:
        measure()
    else:
        print_tables()
        print_layouts()
        print_service()
