"""How well the texts of a part did: accuracies, pass@k, flips, and the share of tokens that B wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rl_onoff.errors import InvalidField, MissingDependency
from rl_onoff.metrics import find, pass_at_k
from rl_onoff.metrics.bootstrap import Estimate, bootstrap, mean_of
from rl_onoff.metrics.registry import MODEL_METRICS, Metric
from rl_onoff.runs.summary import estimate, sums_of

#: The seed of its noise and -1, or where a record has none the run's and the sample's number: generations of one noise
#: have the same in every part.
Sample = tuple[int, int]
Array = npt.NDArray[np.float64]
_DIGITS: Final = re.compile(r"(\d+)")


@dataclass
class Outcomes:
    """Scores and counts of tokens by problem: a few numbers per text, never the text.

    `scores[metric][problem][sample]`; `corpora[metric][problem]`: sums of metrics whose value over texts is no mean,
    as BLEU's and perplexity's; `written[problem]`: tokens of B, of both. `finished`: texts by why they ended.
    """

    scores: dict[str, dict[str, dict[Sample, float]]] = field(default_factory=dict)
    corpora: dict[str, dict[str, Array]] = field(default_factory=dict)
    written: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    texts: int = 0
    _no_means: dict[str, Metric | None] = field(default_factory=dict)

    def add(self, seed: int, record: Mapping[str, Any]) -> None:
        """One text."""
        problem = str(record["id"])
        self.texts += 1
        tokens = self.written.setdefault(problem, [0, 0])
        tokens[0] += str(record.get("leads") or "").count("b")
        tokens[1] += len(record.get("token_ids") or ())
        reason = str(record.get("finish_reason") or "unknown")
        self.finished[reason] = self.finished.get(reason, 0) + 1
        for name, value in (record.get("metrics") or {}).items():
            if name not in self.scores and name not in self.corpora and not is_mean(name):
                self._no_means[name] = None if name in MODEL_METRICS else find(name)
                self.corpora[name] = {}
            if name in self._no_means:
                problems, sums = self.corpora[name], sums_of(self._no_means[name], record, value)
                problems[problem] = problems[problem] + sums if problem in problems else sums
            if isinstance(value, int | float):
                own = record.get("seed")
                sample = (own, -1) if isinstance(own, int) else (seed, int(record.get("sample") or 0))
                self.scores.setdefault(name, {}).setdefault(problem, {})[sample] = float(value)

    @property
    def tokens(self) -> int:
        """Tokens written by either model."""
        return sum(both for _, both in self.written.values())

    def share(self) -> Estimate | None:
        """Of B's tokens among all, with the interval over problems."""
        sums = np.array([self.written[problem] for problem in sorted(self.written)], dtype=np.float64)
        if not sums.size or not sums[:, 1].sum():
            return None
        with np.errstate(invalid="ignore"):
            return bootstrap(sums, lambda each: each[..., 0] / each[..., 1])

    def samples(self, metric: str) -> set[tuple[str, Sample]]:
        """Those that have a score."""
        return {(problem, sample) for problem, row in self.scores.get(metric, {}).items() for sample in row}

    def mean(self, metric: str) -> Estimate | None:
        """The mean over samples, or the corpus's value, with the interval over problems: as `summary.json` has it."""
        if metric in self._no_means:
            corpus = self.corpora[metric]
            return estimate(self._no_means[metric], np.array([corpus[each] for each in sorted(corpus)]))
        problems = self.scores.get(metric)
        if not problems:
            return None
        sums = np.array([[sum(problems[each].values()), len(problems[each])] for each in sorted(problems)])
        return bootstrap(sums, lambda each: each[..., 0] / each[..., 1])

    def pass_at_k(self, metric: str) -> dict[int, Estimate]:
        """pass@k for k = 1, 2, 4, ... as far as every problem has samples (Chen et al., arXiv 2107.03374)."""
        problems = self.scores.get(metric)
        if not problems:
            return {}
        groups = [list(problems[each].values()) for each in sorted(problems)]
        most = min(map(len, groups))
        counts = [(len(group), sum(value == 1.0 for value in group)) for group in groups]
        ks = [2**power for power in range(most.bit_length())]
        return {k: mean_of([pass_at_k(n, correct, k) for n, correct in counts]) for k in ks}


@dataclass(frozen=True)
class Problem:
    """Right samples of one problem: under A, B and switched, of `samples` that all three have."""

    id: str
    a: int
    b: int
    switched: int
    samples: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Flips:
    """Samples by (A right, B right, switched right), paired by their noise, and the problems they belong to."""

    cells: dict[tuple[bool, bool, bool], int]
    problems: list[Problem]

    @property
    def gained(self) -> int:
        """Wrong under A, right when switched."""
        return sum(count for (a, _, switched), count in self.cells.items() if switched and not a)

    @property
    def lost(self) -> int:
        """Right under A, wrong when switched."""
        return sum(count for (a, _, switched), count in self.cells.items() if a and not switched)


def flips(metric: str, a: Outcomes, b: Outcomes, switched: Outcomes) -> Flips:
    """Over the samples that all three have; problems that switching changed come first, the most gained before."""
    cells = {(x, y, z): 0 for x in (False, True) for y in (False, True) for z in (False, True)}
    problems = []
    ones, twos, threes = (each.scores.get(metric, {}) for each in (a, b, switched))
    for problem in sorted(ones.keys() & twos.keys() & threes.keys(), key=natural):
        shared = ones[problem].keys() & twos[problem].keys() & threes[problem].keys()
        triples = [
            (ones[problem][key] == 1.0, twos[problem][key] == 1.0, threes[problem][key] == 1.0) for key in shared
        ]
        for triple in triples:
            cells[triple] += 1
        if triples:
            by_a, by_b, by_both = (sum(each) for each in zip(*triples, strict=True))
            gained = sum(z and not x for x, _, z in triples)
            lost = sum(x and not z for x, _, z in triples)
            problems.append(Problem(problem, by_a, by_b, by_both, len(triples), gained, lost))
    problems.sort(key=lambda each: (-each.gained, -each.lost))  # stable: then by id
    return Flips(cells, problems)


def natural(text: str) -> list[tuple[int, int, str]]:
    """For sorting: numbers within an id by their value."""
    return [
        (0, int(piece), "") if piece.isdecimal() and piece.isascii() else (1, 0, piece)
        for piece in _DIGITS.split(text[:200])
        if piece
    ]


def is_binary(metric: str, parts: Mapping[str, Outcomes]) -> bool:
    """Whether a metric is right or wrong: as it says itself, and where its library is not here by its values."""
    if metric in MODEL_METRICS:
        return False
    try:
        return find(metric).binary
    except (MissingDependency, InvalidField):
        values = [
            value for each in parts.values() for row in each.scores.get(metric, {}).values() for value in row.values()
        ]
        return bool(values) and {0.0, 1.0}.issuperset(values)


def is_mean(metric: str) -> bool:
    """Whether the value over many texts is the mean of their values; not so for BLEU and perplexity."""
    if metric in MODEL_METRICS:
        return False
    try:
        return find(metric).statistics is None
    except (MissingDependency, InvalidField):
        return True
