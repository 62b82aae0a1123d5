"""Values of all samples of one problem together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that of k samples drawn from these at least one is correct: 1 - C(n-c, k)/C(n, k).

    The unbiased estimator of Chen et al., arXiv 2107.03374, equation 1. Raises ValueError unless c, k <= n, 1 <= k.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {correct} correct, is not defined")
    if samples - correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def majority_vote(answers: Sequence[str | None]) -> int | None:
    """The index of the first sample with the most frequent answer; None where no sample has one.

    Of equally frequent answers the one given first wins (self-consistency, Wang et al., ICLR 2023, leaves it open).
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(i for i, answer in enumerate(answers) if answer is not None and votes[answer] == most)
