"""What is decided from the two rows at a position: their measures, and the token each model would emit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl_onoff import divergence
from rl_onoff.policy import Lead
from workers import sampling
from workers.wire import SamplingParams


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything a policy or a client may ask about n consecutive positions; every list has n entries."""

    tokens_a: list[int]
    tokens_b: list[int]
    values: dict[str, list[float]]
    delta_if_a: list[float]  # log q - log p of A's token, and of B's
    delta_if_b: list[float]

    def token(self, i: int, lead: Lead) -> int:
        return self.tokens_a[i] if lead == "a" else self.tokens_b[i]

    def recorded(self, i: int, lead: Lead) -> dict[str, float]:
        """The measures at position i once it is known who leads it."""
        values = {name: column[i] for name, column in self.values.items()}
        if self.delta_if_a:
            values["delta_logp"] = self.delta_if_a[i] if lead == "a" else self.delta_if_b[i]
        return values


def judge(
    rows_a: Any, rows_b: Any, positions: Sequence[int], params: SamplingParams, measures: frozenset[str]
) -> Judgement:
    """Judge rows `[n, V]` of A and B that predict the tokens at `positions`."""
    noise = None
    if params.temperature > 0:
        noise = sampling.gumbel(params.seed, positions, rows_a.shape[-1], rows_a)
    tokens_a = sampling.choose(rows_a, params, positions, noise)
    tokens_b = sampling.choose(rows_b, params, positions, noise)
    values = divergence.compute(rows_a, rows_b, sorted(measures - {"delta_logp"}))
    deltas: list[list[float]] = [[], []]
    if "delta_logp" in measures:
        deltas = [_delta(rows_a, rows_b, tokens) for tokens in (tokens_a, tokens_b)]
    return Judgement(
        tokens_a,
        tokens_b,
        {name: [float(value) for value in column] for name, column in values.items()},
        *deltas,
    )


def _delta(rows_a: Any, rows_b: Any, tokens: list[int]) -> list[float]:
    return [float(rows_b[i, token]) - float(rows_a[i, token]) for i, token in enumerate(tokens)]
