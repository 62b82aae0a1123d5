"""What it costs to compare rows: the kernel of all measures against what one would write with scipy and torch.

One thread; everything starts from logits and gives divergences; all methods take turns, best of the rounds. Ratios are
the others' time over the kernel's. JSON lines.

    python -m benchmarks.divergence [--quick]

The others' temporaries cost them more than their arithmetic where malloc gives large blocks back at once and gets them
again page by page, as it does unless told. Without that, so long as there is memory:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 python -m benchmarks.divergence
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from benchmarks.memory import extra_mb
from rl_onoff import divergence
from workers.comparison import Rows, compare

LN2 = float(np.log(2))
#: JS, both KLs, TV, both entropies, delta log p and top-1 agreement.
ALL = ["js", "kl_ab", "kl_ba", "tv", "entropy_a", "entropy_b", "delta_logp", "top1_agree"]
MORE = [*ALL, "hellinger", "renyi:0.5", "top_prob_a", "rank_of_b_in_a", "rank_of_a_in_b"]

Tensors = tuple[torch.Tensor, torch.Tensor]


def kernel(logits: Tensors, names: list[str]) -> dict[str, Any]:
    """Ours, on one thread."""
    rows = [
        Rows(row.view(torch.uint16).numpy(), "bfloat16") if row.dtype == torch.bfloat16 else Rows.of(row.numpy())
        for row in logits
    ]
    return compare(*rows, names, np.zeros(logits[0].shape[0], np.int64)).measures


def scipy_js(logits: Tensors) -> dict[str, Any]:
    """JS alone, as scipy has it: row by row, from probabilities."""
    p, q = (row.float().softmax(-1).numpy() for row in logits)
    return {"js": np.array([jensenshannon(x, y) ** 2 for x, y in zip(p, q, strict=True)])}


def scipy_rel_entr(logits: Tensors) -> dict[str, Any]:
    """JS and both KLs."""
    p, q = (row.float().softmax(-1).numpy() for row in logits)
    m = (p + q) / 2
    js = (rel_entr(p, m).sum(1) + rel_entr(q, m).sum(1)) / 2
    return {"js": js, "kl_ab": rel_entr(p, q).sum(1), "kl_ba": rel_entr(q, p).sum(1)}


def torch_formula(a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
    """All measures, as a paper's code writes them."""
    lp, lq = a.float().log_softmax(-1), b.float().log_softmax(-1)
    p, q = lp.exp(), lq.exp()
    lm = torch.logaddexp(lp, lq) - LN2
    return {
        "js": ((p * (lp - lm)).sum(-1) + (q * (lq - lm)).sum(-1)) / 2,
        "kl_ab": (p * (lp - lq)).sum(-1),
        "kl_ba": (q * (lq - lp)).sum(-1),
        "tv": (p - q).abs().sum(-1) / 2,
        "entropy_a": -(p * lp).sum(-1),
        "entropy_b": -(q * lq).sum(-1),
        "top1_agree": lp.argmax(-1) == lq.argmax(-1),
    }


def bandwidth(logits: Tensors) -> None:
    """The least anything can take: reading both once."""
    for row in logits:
        row.view(torch.int32 if row.dtype == torch.float32 else torch.int16).amax()


def measure(
    rows: int, vocab_size: int, dtype: torch.dtype, rounds: int, compiled: Callable[..., Any]
) -> dict[str, Any]:
    """One line of the report."""
    torch.manual_seed(0)
    a = torch.randn(rows, vocab_size).mul_(3)
    scale = torch.logspace(-4, 0.3, rows)[:, None]  # pairs from nearly equal to far apart
    logits = (a.to(dtype), (a + torch.randn(rows, vocab_size) * scale).to(dtype))
    methods: dict[str, Callable[[], Any]] = {
        "kernel": lambda: kernel(logits, ALL),
        "kernel_more": lambda: kernel(logits, MORE),
        "scipy_js_alone": lambda: scipy_js(logits),
        "scipy_rel_entr": lambda: scipy_rel_entr(logits),
        "torch": lambda: torch_formula(*logits),
        "torch_compile": lambda: compiled(*logits),
        "bandwidth": lambda: bandwidth(logits),
    }
    extra = {name: round(extra_mb(run), 1) for name, run in methods.items()}  # compiles, too
    extra["kernel"] = round(extra_mb(methods["kernel"]), 1)
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(rounds):
        for name, run in methods.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    entries = rows * vocab_size
    own = best["kernel"]
    return {
        "rows": rows,
        "vocab_size": vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "malloc": "keeps what is freed" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "as it is",
        "kernel_ns_per_entry": round(own / entries * 1e9, 2),
        "times_the_kernel": {name: round(best[name] / own, 2) for name in methods if name != "kernel"},
        "extra_mb": extra,
        "largest_error": _errors(logits),
    }


def _errors(logits: Tensors) -> dict[str, dict[str, float]]:
    """Against the float64 reference, over a few of the rows."""
    few = slice(None, None, max(1, logits[0].shape[0] // 8))
    rows: Any = tuple(row[few] for row in logits)
    want = divergence.compute(*(row.double().log_softmax(-1) for row in rows), ["js", "kl_ab", "kl_ba"])
    found = {"kernel": kernel(rows, ALL), "torch": torch_formula(*rows), "scipy": scipy_rel_entr(rows)}
    return {
        method: {
            name: float(f"{np.abs(np.asarray(got[name]) - np.asarray(want[name])).max():.1e}")
            for name in ("js", "kl_ab", "kl_ba")
        }
        for method, got in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller shapes alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    compiled = torch.compile(torch_formula, dynamic=True)
    with torch.inference_mode():
        for rows in (64,) if quick else (64, 512):
            for vocab_size in (32_000, 151_936):
                for dtype in (torch.float32, torch.bfloat16):
                    rounds = 3 if rows * vocab_size > 1 << 25 else 7
                    print(json.dumps(measure(rows, vocab_size, dtype, rounds, compiled)), flush=True)


if __name__ == "__main__":
    main()
