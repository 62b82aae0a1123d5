"""The demo's experiment: exact match of A, of B, of A with B where they disagree, and of A with B at random."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from rl_onoff.client import AsyncClient
from rl_onoff.errors import ConfigurationError
from rl_onoff.fields import PolicyLike
from rl_onoff.policy import AlwaysA, AlwaysB, DivergencePolicy, RandomPolicy

MAX_TOKENS: Final = 160
CONCURRENCY: Final = 16
FIRST_SEED: Final = 1000
DEFAULT_THRESHOLD: Final = 0.1
ANSWER_MARK: Final = "A:"


@dataclass(frozen=True, slots=True)
class Problem:
    """A held-out problem of the demo pair, with the answer that counts as right."""

    id: str
    prompt: str
    reference: str

    def solved_by(self, text: str) -> bool:
        """Exact match of what follows the last answer mark: the rule of the demo's model card."""
        return ANSWER_MARK in text and text.rpartition(ANSWER_MARK)[2].strip() == self.reference


@dataclass(frozen=True, slots=True)
class Run:
    """One problem under one condition."""

    right: bool
    tokens: int
    by_b: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error over problems."""

    value: float
    error: float

    def percent(self) -> str:
        """As in the table."""
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A row of the table."""

    name: str
    runs: Sequence[Run]

    @property
    def accuracy(self) -> Estimate:
        """The share of problems solved, its error by the plus-four rule: not 0 when all are right, or none."""
        count, right = len(self.runs), sum(run.right for run in self.runs)
        shrunk = (right + 2) / (count + 4)
        return Estimate(right / count, math.sqrt(shrunk * (1 - shrunk) / (count + 4)))

    @property
    def b_share(self) -> Estimate:
        """The share of all tokens that B led: a ratio of sums, its error by linearisation over problems."""
        count, tokens = len(self.runs), sum(run.tokens for run in self.runs)
        share = sum(run.by_b for run in self.runs) / tokens
        residuals = sum((run.by_b - share * run.tokens) ** 2 for run in self.runs)
        return Estimate(share, math.sqrt(residuals * count / max(1, count - 1)) / tokens)


def read_problems(path: Path, count: int) -> list[Problem]:
    """The first problems of a set. Raises ConfigurationError when there are too few."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    if len(lines) < count:
        raise ConfigurationError(f"{path} holds {len(lines)} problems, {count} are needed")
    rows = [json.loads(line) for line in lines]
    return [Problem(id=row["id"], prompt=row["prompt"], reference=row["reference"]) for row in rows]


def read_threshold(path: Path) -> float:
    """The threshold that the demo's own evaluation recommends, where it does."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return float(results.get("recommended_threshold", DEFAULT_THRESHOLD))


async def measure(
    url: str, problems: Sequence[Problem], threshold: float, advance: Callable[[], None]
) -> list[Condition]:
    """All four conditions: temperature 1, one sample per problem, the same seeds in each."""
    async with AsyncClient(url) as client:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def run(name: str, policy: PolicyLike) -> Condition:
            async def one(index: int, problem: Problem) -> Run:
                async with gate:
                    result = await client.switch_generate(
                        problem.prompt, policy=policy, temperature=1.0, max_tokens=MAX_TOKENS, seed=FIRST_SEED + index
                    )
                advance()
                return Run(problem.solved_by(result.text), len(result.leads), result.leads.count("b"))

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(index, problem)) for index, problem in enumerate(problems)]
            except ExceptionGroup as failed:  # one request's failure ends the others: it is the one to report
                raise failed.exceptions[0] from failed
            return Condition(name, [task.result() for task in tasks])

        alone = [await run("A alone", AlwaysA(kind="always_a")), await run("B alone", AlwaysB(kind="always_b"))]
        switched = await run(f"A, and B where JS > {threshold:g}", DivergencePolicy(on=threshold))
        rate = switched.b_share.value
        control = await run("A, and B as often at random", RandomPolicy(kind="random", rate=rate))
    return [*alone, switched, control]


def table(conditions: Sequence[Condition]) -> Table:
    """The conditions side by side."""
    made = Table(caption=f"{len(conditions[0].runs)} problems, temperature 1, ± one standard error")
    made.add_column("condition", no_wrap=True)
    for column in ("exact match, %", "B's tokens, %", "tokens"):
        made.add_column(column, justify="right")
    for condition in conditions:
        length = sum(run.tokens for run in condition.runs) / len(condition.runs)
        made.add_row(condition.name, condition.accuracy.percent(), condition.b_share.percent(), f"{length:.0f}")
    return made


def in_words(conditions: Sequence[Condition]) -> str:
    """What the table shows, whatever it shows."""
    a, b, switched, control = (condition.accuracy.value for condition in conditions)
    share = 100 * conditions[2].b_share.value
    if b <= a:
        return "On these problems B is no better than A, so there is no gap to recover."
    recovered, by_chance = (100 * (accuracy - a) / (b - a) for accuracy in (switched, control))
    return (
        f"With B leading {share:.1f}% of the tokens, those where the models disagree, A recovers {recovered:.0f}% "
        f"of the gap to B; with as many at random {by_chance:.0f}%."
    )
