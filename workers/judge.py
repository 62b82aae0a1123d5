"""What is decided from the two rows at a position: their measures, and the token each model would emit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_onoff import divergence
from rl_onoff.policy import Lead
from workers import kernels, sampling
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
    tokens_a = sampling.choose(rows_a, params, positions)
    tokens_b = sampling.choose(rows_b, params, positions)
    values = measure(rows_a, rows_b, sorted(measures - {"delta_logp"}))
    deltas: list[list[float]] = [[], []]
    if "delta_logp" in measures:
        deltas = [_delta(rows_a, rows_b, tokens) for tokens in (tokens_a, tokens_b)]
    return Judgement(
        tokens_a,
        tokens_b,
        {name: [float(value) for value in column] for name, column in values.items()},
        *deltas,
    )


def measure(rows_a: Any, rows_b: Any, measures: Iterable[str], token_ids: Any = None) -> dict[str, Any]:
    """As `divergence.compute`, by compiled loops where there are any and the rows are within their reach."""
    names = set(measures)
    host_a, host_b = sampling.on_host(rows_a), sampling.on_host(rows_b)
    if host_a is None or host_b is None or host_a.dtype != np.float32 or "js" not in names:
        return divergence.compute(rows_a, rows_b, names, token_ids)
    return {
        "js": kernels.js_rows(host_a, host_b),
        **divergence.compute(rows_a, rows_b, names - {"js"}, token_ids),
    }


def _delta(rows_a: Any, rows_b: Any, tokens: list[int]) -> list[float]:
    return [float(rows_b[i, token]) - float(rows_a[i, token]) for i, token in enumerate(tokens)]
