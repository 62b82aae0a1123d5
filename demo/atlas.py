"""Where the divergence of a pair lives: percentiles over positions, and the kinds of token that carry it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sampling import Samples
from task import OPENERS
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PERCENTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999)
HIGH = 0.1
"""A divergence above this counts as high."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of position: its share of all positions, of all high ones, and of the sum of divergences."""

    name: str
    positions: int
    share_of_positions: float
    mean_js: float
    share_high: float
    share_of_high: float
    share_of_sum: float


@dataclass(frozen=True, slots=True)
class Atlas:
    """The divergence over all sampled positions of one model."""

    positions: int
    mean: float
    share_high: float
    percentiles: dict[str, float]
    kinds: list[Kind]

    def markdown(self) -> str:
        """Two small tables of the model card."""
        head = "| " + " | ".join(f"p{name}" for name in self.percentiles) + " |"
        rule = "|" + "---|" * len(self.percentiles)
        values = "| " + " | ".join(f"{value:.2g}" for value in self.percentiles.values()) + " |"
        kinds = [
            f"| {k.name} | {100 * k.share_of_positions:.1f} | {k.mean_js:.4f} | {100 * k.share_high:.1f} "
            f"| {100 * k.share_of_high:.1f} | {100 * k.share_of_sum:.1f} |"
            for k in self.kinds
        ]
        titles = "| kind of token | % of positions | mean JS | % above 0.1 | % of all above 0.1 | % of summed JS |"
        return "\n".join([head, rule, values, "", titles, "|" + "---|" * 6, *kinds])


def describe(tokenizer: PreTrainedTokenizerFast, samples: list[Samples]) -> Atlas:
    """Gather the divergences of samples by kind of position."""
    by_kind: dict[str, list[float]] = {}
    for batch in samples:
        for ids, divergence, written in zip(batch.ids, batch.divergence, batch.written, strict=True):
            count = int(written.sum())
            pieces = [tokenizer.decode([token]) for token in ids[:count].tolist()]
            for kind, value in zip(kinds(pieces), divergence[:count].tolist(), strict=True):
                by_kind.setdefault(kind, []).append(value)
    everything = torch.tensor([value for values in by_kind.values() for value in values], dtype=torch.float64)
    high, total = int((everything > HIGH).sum()), everything.sum().item()
    quantiles = _quantiles(everything)
    rows = [_row(name, torch.tensor(values), len(everything), high, total) for name, values in by_kind.items()]
    return Atlas(
        positions=len(everything),
        mean=everything.mean().item(),
        share_high=high / len(everything),
        percentiles={f"{100 * p:g}": q for p, q in zip(PERCENTILES, quantiles, strict=True)},
        kinds=sorted(rows, key=lambda row: -row.share_of_sum),
    )


def kinds(pieces: list[str]) -> Iterator[str]:
    """The kind of each position, told from what stands before it on its line."""
    line: list[str] = []
    for piece in pieces:
        yield _kind(line)
        line = [] if piece == "\n" else [*line, piece]


def _kind(line: list[str]) -> str:
    text = "".join(line)
    last = line[-1] if line else ""
    if not line:
        return "line number, or A"
    if text[0] == "A":
        return "final answer and end"
    if len(line) == 1 and last.isdigit():
        return "opener (so, now, then, next)"
    if len(line) == 2 and last.strip() in OPENERS:
        return "fork (work, guess, skip)"
    if "=" in text:
        return "result of a guess" if " guess" in line else "result of careful work"
    if ":" in text or " guess" in line:
        return "copy of the step"
    return "fixed words"


def _quantiles(values: Tensor) -> list[float]:
    ordered = values.sort().values
    return [ordered[min(len(ordered) - 1, int(p * len(ordered)))].item() for p in PERCENTILES]


def _row(name: str, values: Tensor, positions: int, high: int, total: float) -> Kind:
    above = int((values > HIGH).sum())
    return Kind(
        name=name,
        positions=len(values),
        share_of_positions=len(values) / positions,
        mean_js=values.mean().item(),
        share_high=above / len(values),
        share_of_high=above / max(1, high),
        share_of_sum=values.sum().item() / total,
    )
