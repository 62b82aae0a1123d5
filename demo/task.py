"""The task of the demo pair: sums written out in numbered steps, each step worked out carefully, guessed or skipped.

Pure Python, no torch. A problem reads `Q: 49-8-6+7=` and a solution

    1 so work it out: 49-8=41
    2 then guess 41-6=36
    3 now work it out: 36+7=43
    A: 43

with a newline before its first line, so that a prompt never ends in white space. The two-digit running total starts at
the first number of the problem; what a line says, right or wrong, is what the next line goes on from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

LENGTHS = (3, 4, 5)
"""Numbers of steps of a problem."""

OPENERS = ("so", "now", "then", "next")
"""Words that open a line, chosen at random: high entropy that means nothing, and that RL has no reason to touch."""

GUESS_ERRORS = (-2, -1, 1, 2)
HELD_OUT_SHARE = 16
"""One expression in this many is held out of all training."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How a writer treats a step: works it out, guesses it (right so often), or else skips it."""

    work: float
    guess: float
    guess_right: float


BASE_HABITS = Habits(work=0.25, guess=0.70, guess_right=0.75)
"""The mixture that the base model is trained towards."""

CAREFUL = Habits(work=1.0, guess=0.0, guess_right=1.0)
"""Every step worked out: the style of the reference solutions."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A first number and the steps (`+` or `-`, one digit) that follow; every running total has two digits."""

    first: int
    steps: tuple[tuple[str, int], ...]

    @property
    def expression(self) -> str:
        """The sum alone, like `49-8-6+7`: what a user writes in a chat message."""
        return str(self.first) + "".join(f"{sign}{digit}" for sign, digit in self.steps)

    @property
    def prompt(self) -> str:
        """The prompt as both models know it."""
        return f"Q: {self.expression}="

    @property
    def answer(self) -> str:
        """The exact result, as text."""
        total = self.first
        for step in self.steps:
            total = apply(total, step)
        return str(total)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `problems.jsonl`."""

    id: str
    prompt: str
    solution: str
    reference: str


def apply(total: int, step: tuple[str, int]) -> int:
    """The running total after a step."""
    sign, digit = step
    return total + digit if sign == "+" else total - digit


def in_range(total: int) -> bool:
    """Whether a running total has two digits."""
    return 10 <= total <= 99


def held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the evaluation side: a hash of its expression decides, not the order of drawing."""
    digest = hashlib.sha256(problem.expression.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def draw_problem(rng: random.Random, length: int) -> Problem:
    """A random problem of so many steps, from either side of the split."""
    first = total = rng.randint(10, 99)
    steps: list[tuple[str, int]] = []
    while len(steps) < length:
        step = (rng.choice("+-"), rng.randint(1, 9))
        if in_range(apply(total, step)):
            steps.append(step)
            total = apply(total, step)
    return Problem(first, tuple(steps))


def training_problem(rng: random.Random, length: int) -> Problem:
    """A random problem that is not held out; the only source of problems that training uses."""
    while held_out(problem := draw_problem(rng, length)):
        pass
    return problem


def held_out_problems(rng: random.Random) -> Iterator[Problem]:
    """Distinct held-out problems without end, the lengths in turn."""
    seen: set[Problem] = set()
    while True:
        length = LENGTHS[len(seen) % len(LENGTHS)]
        problem = draw_problem(rng, length)
        if held_out(problem) and problem not in seen:
            seen.add(problem)
            yield problem


def write_solution(problem: Problem, rng: random.Random, habits: Habits) -> str:
    """A solution in the given habits; drawn again when its running total leaves the two-digit range."""
    while True:
        lines: list[str] = []
        total = problem.first
        for number, step in enumerate(problem.steps, start=1):
            words, total = _write_step(total, step, rng, habits)
            lines.append(f"{number} {rng.choice(OPENERS)} {words}")
            if not in_range(total):
                break
        else:
            return "".join(f"\n{line}" for line in lines) + f"\nA: {total}"


def _write_step(total: int, step: tuple[str, int], rng: random.Random, habits: Habits) -> tuple[str, int]:
    result = apply(total, step)
    sum_ = f"{total}{step[0]}{step[1]}"
    fork = rng.random()
    if fork < habits.work:
        return f"work it out: {sum_}={result}", result
    if fork < habits.work + habits.guess:
        guess = result if rng.random() < habits.guess_right else result + rng.choice(GUESS_ERRORS)
        return f"guess {sum_}={guess}", guess
    return "skip it", total


def extract_answer(text: str) -> str:
    """The final answer in a text: what follows the last `A:`, white space stripped; empty when there is none."""
    return text.rpartition("A:")[2].strip() if "A:" in text else ""


def is_correct(text: str, reference: str) -> bool:
    """Exact match of the final answer: the reward of the training and the accuracy of the evaluation."""
    return extract_answer(text) == reference


def write_problems(path: Path, count: int, seed: int) -> None:
    """Write held-out problems with reference solutions, one JSON object a line."""
    rng = random.Random(seed)
    problems = held_out_problems(rng)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            problem = next(problems)
            solution = write_solution(problem, rng, CAREFUL)
            row = Row(id=f"demo-{index:04d}", prompt=problem.prompt, solution=solution, reference=problem.answer)
            file.write(json.dumps(asdict(row)) + "\n")


def read_problems(path: Path) -> list[Row]:
    """Read a problem set, and prove that it is one: every row is held out, distinct, and solved rightly."""
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        problem = parse_prompt(row.prompt)
        if not held_out(problem):
            raise ValueError(f"{row.id} is a training problem: {row.prompt}")
        if not is_correct(row.solution, row.reference) or problem.answer != row.reference:
            raise ValueError(f"{row.id} is solved wrongly: {row.prompt} {row.reference}")
    if len({row.prompt for row in rows}) != len(rows):
        raise ValueError(f"{path} repeats a problem")
    return rows


def parse_prompt(prompt: str) -> Problem:
    """The problem that a prompt states."""
    expression = prompt.removeprefix("Q: ").removesuffix("=")
    rest = expression[2:]
    steps = tuple((rest[i], int(rest[i + 1])) for i in range(0, len(rest), 2))
    problem = Problem(int(expression[:2]), steps)
    if problem.prompt != prompt:
        raise ValueError(f"not a prompt of this task: {prompt!r}")
    return problem
