"""Measure the demo pair on its held-out problems: A, B, switching between them, and random switching beside it.

    OMP_WAIT_POLICY=PASSIVE python demo/evaluate.py

Temperature 1, fixed seeds, one sample per problem and condition. Writes `results.json` and prints the tables of the
model card. Intervals are 95% bootstrap intervals over problems, paired between conditions.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from atlas import Atlas, describe
from sampling import Chooser, Samples, sample, texts
from task import Row, is_correct, parse_prompt, read_problems
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of the table: `share` of the other model's tokens, `recovered` share of the gap between A and B."""

    name: str
    accuracy: float
    accuracy_interval: tuple[float, float]
    share: float
    share_interval: tuple[float, float]
    recovered: float
    recovered_interval: tuple[float, float]
    tokens: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to each problem under a condition, `[problems]` each."""

    right: Tensor
    by_other: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """Both models, their tokenizer and the problems, in batches of one length of prompt."""

    tokenizer: PreTrainedTokenizerFast
    a: LlamaForCausalLM
    b: LlamaForCausalLM
    batches: list[list[Row]]

    def run(
        self, model: LlamaForCausalLM, other: LlamaForCausalLM, rule: Chooser | None, seed: int
    ) -> tuple[Outcome, list[Samples]]:
        """Sample every problem once; `other` takes over where `rule` says."""
        generator = torch.Generator().manual_seed(seed)
        samples = [
            sample(self.tokenizer, [row.prompt for row in batch], generator, model, other, rule)
            for batch in self.batches
        ]
        right = [
            float(is_correct(text, row.reference))
            for batch, drawn in zip(self.batches, samples, strict=True)
            for row, text in zip(batch, texts(self.tokenizer, drawn), strict=True)
        ]
        by_other = torch.cat([drawn.by_other.sum(1) for drawn in samples]).double()
        tokens = torch.cat([drawn.written.sum(1) for drawn in samples]).double()
        return Outcome(torch.tensor(right, dtype=torch.float64), by_other, tokens), samples


def above(threshold: float) -> Chooser:
    """The other model leads where the divergence exceeds the threshold."""
    return lambda divergence: divergence > threshold


def at_random(share: float, seed: int) -> Chooser:
    """The other model leads at random positions, at a given rate."""
    generator = torch.Generator().manual_seed(seed)
    return lambda divergence: torch.rand(divergence.shape, generator=generator) < share


def load(folder: Path) -> Pair:
    """Load the shipped pair and its problem set; a training problem among them is an error."""
    by_length: dict[int, list[Row]] = {}
    for row in read_problems(folder / "problems.jsonl"):
        by_length.setdefault(len(parse_prompt(row.prompt).steps), []).append(row)
    a, b = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, local_files_only=True).eval()
        for name in ("base", "rl")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", local_files_only=True)
    return Pair(tokenizer, a, b, [by_length[length] for length in sorted(by_length)])


class Table:
    """Conditions beside A and B, whose outcomes fix the gap; one set of bootstrap resamples serves all of them."""

    def __init__(self, a: Outcome, b: Outcome) -> None:
        self.a, self.b = a, b
        count = len(a.right)
        generator = torch.Generator().manual_seed(0)
        self.resamples = torch.randint(count, (RESAMPLES, count), generator=generator)
        self.rows: list[Condition] = []

    def add(self, name: str, outcome: Outcome) -> Condition:
        """Measure a condition and append it."""

        def accuracy(index: Tensor) -> Tensor:
            return outcome.right[index].mean(-1)

        def share(index: Tensor) -> Tensor:
            return outcome.by_other[index].sum(-1) / outcome.tokens[index].sum(-1)

        def recovered(index: Tensor) -> Tensor:
            low, high = self.a.right[index].mean(-1), self.b.right[index].mean(-1)
            return (accuracy(index) - low) / (high - low)

        condition = Condition(
            name,
            *self._measure(accuracy),
            *self._measure(share),
            *self._measure(recovered),
            tokens=outcome.tokens.mean().item(),
        )
        self.rows.append(condition)
        log.info("%s", markdown_row(condition))
        return condition

    def _measure(self, statistic: Callable[[Tensor], Tensor]) -> tuple[float, tuple[float, float]]:
        everyone = torch.arange(self.resamples.shape[1])
        low, high = torch.quantile(statistic(self.resamples), torch.tensor([0.025, 0.975]).double()).tolist()
        return statistic(everyone).item(), (low, high)


def markdown_row(row: Condition) -> str:
    """A condition as a line of the card's table."""

    def percent(value: float, interval: tuple[float, float]) -> str:
        return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"

    cells = (
        row.name,
        percent(row.accuracy, row.accuracy_interval),
        percent(row.share, row.share_interval),
        percent(row.recovered, row.recovered_interval),
        f"{row.tokens:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def measure(pair: Pair, table: Table) -> None:
    """Fill the table: both directions, every threshold, a rate-matched random control beside each."""
    directions = (("A leads, B where JS", pair.a, pair.b, THRESHOLDS), ("B leads, A where JS", pair.b, pair.a, (0.1,)))
    seed = 10
    for words, model, other, thresholds in directions:
        for threshold in thresholds:
            switched, _ = pair.run(model, other, above(threshold), seed)
            row = table.add(f"{words} > {threshold}", switched)
            control, _ = pair.run(model, other, at_random(row.share, seed), seed + 1)
            table.add("— at random, same share", control)
            seed += 2
    half, _ = pair.run(pair.a, pair.b, at_random(0.5, seed), seed + 1)
    table.add("A leads, B at random for half of all tokens", half)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pair", type=Path, default=Path(__file__).parent, help="folder with base/, rl/, problems.jsonl"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)

    started = time.monotonic()
    pair = load(arguments.pair)
    a, a_samples = pair.run(pair.a, pair.b, None, seed=1)
    b, b_samples = pair.run(pair.b, pair.a, None, seed=2)
    log.info("| condition | exact match, % | share of the other's tokens, % | gap recovered, % | tokens |")
    log.info("|---|---|---|---|---|")
    table = Table(a, b)
    table.add("A alone", a)
    table.add("B alone", b)
    measure(pair, table)
    atlases: dict[str, Atlas] = {}
    for name, samples in (("A", a_samples), ("B", b_samples)):
        atlases[name] = describe(pair.tokenizer, samples)
        log.info("\nJS on the samples of %s\n%s", name, atlases[name].markdown())
    results = {
        "problems": len(a.right),
        "temperature": 1.0,
        "units": "nats",
        "software": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": arguments.threads,
        "conditions": [asdict(row) for row in table.rows],
        "divergence": {name: asdict(atlas) for name, atlas in atlases.items()},
    }
    (arguments.pair / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    log.info("done in %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    main()
