"""What is decided from the two rows at a position: their measures, and the token each model would emit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import array_api_compat
import numpy as np

from rl_onoff import divergence
from rl_onoff.policy import TOKEN_SIGNALS, Lead
from workers import comparison, device, kernels, sampling, threads
from workers.wire import SamplingParams

Rows = Any  # `[n, V]` float32 log-probabilities, numpy or torch


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything a policy or a client asked about n consecutive positions; every list has n entries.

    `delta_logp` is that of the emitted token, so it is known only once the policy has spoken: see `recorded`.
    """

    tokens_a: list[int]
    tokens_b: list[int]
    gaps_a: list[float]  # by how much each token won, in nats (`sampling.draw`)
    gaps_b: list[float]
    values: dict[str, list[float]]
    delta_logp: bool

    def token(self, i: int, lead: Lead) -> int:
        return self.tokens_a[i] if lead == "a" else self.tokens_b[i]

    def gaps(self, i: int) -> dict[Lead, float]:
        return {"a": self.gaps_a[i], "b": self.gaps_b[i]}

    def recorded(self, i: int, lead: Lead) -> dict[str, float]:
        """The signals at position i once it is known who leads it."""
        values = {name: column[i] for name, column in self.values.items()}
        if self.delta_logp:
            values["delta_logp"] = values[f"delta_logp_{lead}"]
        return values


#: Tokens drawn already, and by how much each won (`sampling.draw`).
Drawn = tuple[list[int], list[float]]


def judge(
    rows_a: Rows,
    rows_b: Rows,
    positions: Sequence[int],
    params: SamplingParams,
    signals: frozenset[str],
    drawn_a: Drawn | None = None,
    drawn_b: Drawn | None = None,
) -> Judgement:
    """Judge rows `[n, V]` of A and B that predict the tokens at `positions`; `drawn_*` are not drawn again."""
    host_a, host_b = sampling.on_host(rows_a), sampling.on_host(rows_b)
    if host_a is None or host_b is None or host_a.size < threads.WORTH:
        return _judge(rows_a, rows_b, positions, params, signals, drawn_a, drawn_b)

    def part(begin: int, end: int) -> Judgement:
        here = slice(begin, end)
        cut_a, cut_b = (drawn and (drawn[0][here], drawn[1][here]) for drawn in (drawn_a, drawn_b))
        return _judge(host_a[here], host_b[here], positions[here], params, signals, cut_a, cut_b)

    return _joined(threads.in_parts(part, host_a.shape[0], threads.processors()))


def _joined(parts: Sequence[Judgement]) -> Judgement:
    if len(parts) == 1:
        return parts[0]
    columns = {name: [value for part in parts for value in part.values[name]] for name in parts[0].values}
    return Judgement(
        [token for part in parts for token in part.tokens_a],
        [token for part in parts for token in part.tokens_b],
        [gap for part in parts for gap in part.gaps_a],
        [gap for part in parts for gap in part.gaps_b],
        columns,
        parts[0].delta_logp,
    )


def _judge(
    rows_a: Rows,
    rows_b: Rows,
    positions: Sequence[int],
    params: SamplingParams,
    signals: frozenset[str],
    drawn_a: Drawn | None,
    drawn_b: Drawn | None,
) -> Judgement:
    tokens_a, gaps_a = drawn_a or sampling.draw(rows_a, params, positions)
    tokens_b, gaps_b = drawn_b or sampling.draw(rows_b, params, positions)
    of_tokens = signals.intersection(TOKEN_SIGNALS)
    if "delta_logp" in signals:
        of_tokens |= {"delta_logp_a", "delta_logp_b"}
    columns = measure(rows_a, rows_b, signals.difference(TOKEN_SIGNALS, ["delta_logp"]))
    for name in of_tokens:
        columns[name] = _of_tokens(name, rows_a, rows_b, tokens_b if name == "delta_logp_b" else tokens_a)
    return Judgement(
        tokens_a,
        tokens_b,
        gaps_a,
        gaps_b,
        {name: column.tolist() for name, column in columns.items()},
        "delta_logp" in signals,
    )


def measure(rows_a: Rows, rows_b: Rows, measures: Iterable[str], token_ids: Any = None) -> dict[str, Any]:
    """As `divergence.compute`, by compiled loops where the rows are within their reach.

    A measure comes from the same loop whatever else is asked for: what is recorded must not turn a decision.
    """
    names = set(measures)
    if token_ids is None and "delta_logp" in names:
        raise ValueError("delta_logp needs the scored token_ids")
    if device.reaches(rows_a) and device.reaches(rows_b):
        ids = [0] * rows_a.shape[0] if token_ids is None else token_ids
        return device.compare(rows_a, rows_b, names, ids, normalised=True).measures
    host_a, host_b = sampling.on_host(rows_a), sampling.on_host(rows_b)
    if host_a is None or host_b is None or host_a.dtype != np.float32:
        return divergence.compute(rows_a, rows_b, names, token_ids)
    found = {name: _COMPILED[name](host_a, host_b) for name in names & _COMPILED.keys()}
    if rest := names - _COMPILED.keys():
        ids = np.zeros(host_a.shape[0], np.int64) if token_ids is None else sampling.to_numpy(token_ids)
        rows = (comparison.Rows.of(host_a), comparison.Rows.of(host_b))
        found |= comparison.compare(*rows, rest, ids, normalised=True).measures
    return found


#: One sweep instead of two, for what switching asks for most.
_COMPILED: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "js": kernels.js_rows,
    "entropy_a": lambda a, _: kernels.entropy_rows(a),
    "entropy_b": lambda _, b: kernels.entropy_rows(b),
    "rank_of_b_in_a": lambda a, b: kernels.rank_rows(a, b.argmax(axis=-1)),
    "rank_of_a_in_b": lambda a, b: kernels.rank_rows(b, a.argmax(axis=-1)),
}


def _of_tokens(name: str, rows_a: Rows, rows_b: Rows, tokens: list[int]) -> Any:
    if name == "prob_of_a_in_b":
        return _probabilities(rows_b, tokens)
    xp = array_api_compat.array_namespace(rows_a)
    token_ids = xp.asarray(tokens, dtype=xp.int64, device=array_api_compat.device(rows_a))
    return divergence.gather(rows_b, token_ids) - divergence.gather(rows_a, token_ids)


def _probabilities(rows: Rows, tokens: list[int]) -> Any:
    """Of the tokens, with the exp of `top_prob_b`: policies compare the two, and libraries' last bits differ."""
    host = sampling.on_host(rows)
    if host is not None and host.dtype == np.float32:
        return np.array([math.exp(host[i, token]) for i, token in enumerate(tokens)])
    xp = array_api_compat.array_namespace(rows)
    token_ids = xp.asarray(tokens, dtype=xp.int64, device=array_api_compat.device(rows))
    return xp.exp(xp.astype(divergence.gather(rows, token_ids), xp.float64))
