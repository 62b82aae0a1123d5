"""What clients see of the rows tokens came from: the token's raw log-probability, and the k most likely tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat

from rl_onoff import divergence
from workers import sampling

Rows = Any  # `[n, V]` float32 log-probabilities, numpy or torch


@dataclass(frozen=True, slots=True)
class Logprobs:
    """One entry per token each; of the k most likely the best is first."""

    tokens: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]


def described(rows: Rows, tokens: list[int], k: int) -> Logprobs:
    """Of tokens and the rows `[n, V]` that predicted them, in nats, before temperature and filters."""
    xp = array_api_compat.array_namespace(rows)
    token_ids = xp.asarray(tokens, dtype=xp.int64, device=array_api_compat.device(rows))
    logprobs = sampling.to_numpy(divergence.gather(rows, token_ids)).tolist()
    if k == 0:
        return Logprobs(logprobs, [[] for _ in tokens], [[] for _ in tokens])
    values, ids = sampling.top(rows, k)
    return Logprobs(logprobs, sampling.to_numpy(ids).tolist(), sampling.to_numpy(values).tolist())


def of_leaders(rows_a: Rows, rows_b: Rows, leads: str, tokens: list[int], k: int) -> Logprobs:
    """As `described`, each token by the row of the model that leads it. Rows beyond the tokens are left out."""
    xp = array_api_compat.array_namespace(rows_a)
    by_a = xp.asarray([lead == "a" for lead in leads], device=array_api_compat.device(rows_a))
    return described(xp.where(by_a[:, None], rows_a[: len(tokens)], rows_b[: len(tokens)]), tokens, k)
