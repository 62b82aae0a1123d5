"""What is certain of two rows of which only the most likely tokens are known: stored runs, remote APIs.

The ids known of both rows are cells of their own; of all others only the rest of the mass is known, to each row.
Merging cells never raises a divergence (data processing inequality): measures of merged rows are lower bounds. They are
highest where the rests do not overlap at all, which gives the upper bounds. KL has none: the unknown part of Q may hold
next to nothing where P has its rest.

Log-probabilities must be those of whole rows (normalised over the full vocabulary), not of the k tokens alone. Where an
id is among the top k of one row only, its log-probability in the other must be known too (`token_logprobs` of an API,
or a row scored at given ids); `from_top_k` handles rows that know nothing beyond their own k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rl_onoff import divergence

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.integer]

#: Mass that rounding to float32 may hide or invent in a row. The same mass added to both rests only loosens
#: the bounds: in a cell of its own it would add nothing to a divergence, and merging cells never raises one.
ROUNDING = 1e-6

_MEASURES = {"js": divergence.js, "tv": divergence.tv, "hellinger": divergence.hellinger}


@dataclass(frozen=True, slots=True)
class Bounds:
    """lower <= the measure <= upper, in nats where it has a unit. `upper` is inf where there is none."""

    lower: float
    upper: float

    def decides(self, threshold: float) -> bool:
        """Whether the bounds tell on which side of the threshold the measure lies."""
        return self.lower > threshold or self.upper <= threshold


def from_union(logp: Floats, logq: Floats, measure: str = "js") -> Bounds:
    """Bounds from the log-probabilities `[n]` of the same n distinct ids in both rows.

    `measure`: js, tv, hellinger, kl_ab, kl_ba. Raises ValueError for others, and for what is no part of a row.
    """
    p, q = _part(logp), _part(logq)
    if p.shape != q.shape:
        raise ValueError(f"the rows must give the same ids: {p.size} and {q.size} log-probabilities")
    rest_p, rest_q = _rest(p), _rest(q)
    merged = np.append(p, rest_p), np.append(q, rest_q)
    apart = np.append(p, [rest_p, 0.0]), np.append(q, [0.0, rest_q])
    return _bounds(measure, merged, apart)


def from_top_k(ids_p: Ids, logp: Floats, ids_q: Ids, logq: Floats, measure: str = "js") -> Bounds:
    """Bounds from each row's own k most likely ids and their log-probabilities, `[k]` each, in any order.

    An id one row does not list has there at most the least listed probability, and at most the rest of the mass.
    """
    p, q = _part(logp), _part(logq)
    for ids, values in ((ids_p, p), (ids_q, q)):
        if np.unique(ids).size != values.size:
            raise ValueError("ids must be distinct, one for each log-probability")
    _, in_p, in_q = np.intersect1d(ids_p, ids_q, return_indices=True)
    only_p, only_q = np.delete(p, in_p), np.delete(q, in_q)
    both = p[in_p], q[in_q]
    rest_p, rest_q = _rest(p), _rest(q)
    # The unlisted part of each row, all of it one cell: q's own rest lies somewhere among p's ids and beyond.
    most_q, most_p = min(float(q.min()), rest_q), min(float(p.min()), rest_p)
    lower = _lowest(only_p, only_q, rest_p, rest_q, most_p, most_q)
    merged = np.concatenate([both[0], lower[0]]), np.concatenate([both[1], lower[1]])
    none = np.zeros
    apart = (
        np.concatenate([both[0], only_p, [rest_p], none(only_q.size), [0.0]]),
        np.concatenate([both[1], none(only_p.size), [0.0], only_q, [rest_q]]),
    )
    return _bounds(measure, merged, apart)


def _lowest(
    only_p: Floats, only_q: Floats, rest_p: float, rest_q: float, most_p: float, most_q: float
) -> tuple[Floats, Floats]:
    """Rests laid out so that no completion comes closer: the ratios q/p as even as the caps allow.

    A divergence is a sum of convex functions of (p, q), homogeneous of order one, so the least is where all cells that
    are not at their cap have one ratio, found by bisection.
    """
    low, high = -60.0, 60.0

    def laid(log_ratio: float) -> tuple[Floats, Floats, float, float]:
        ratio = math.exp(log_ratio)
        q_of, p_of = np.minimum(most_q, ratio * only_p), np.minimum(most_p, only_q / ratio)
        return q_of, p_of, rest_q - float(q_of.sum()), rest_p - float(p_of.sum())

    for _ in range(200):
        middle = (low + high) / 2
        _, _, left_q, left_p = laid(middle)
        if left_q > math.exp(middle) * left_p:
            low = middle
        else:
            high = middle
    q_of, p_of, left_q, left_p = laid((low + high) / 2)
    if left_q < -1e-12 or left_p < -1e-12:  # no even layout: merging it all is still a bound
        return np.array([only_p.sum() + rest_p]), np.array([only_q.sum() + rest_q])
    return (
        np.concatenate([only_p, p_of, [max(left_p, 0.0) + ROUNDING]]),
        np.concatenate([q_of, only_q, [max(left_q, 0.0) + ROUNDING]]),
    )


def _bounds(measure: str, merged: tuple[Floats, Floats], apart: tuple[Floats, Floats]) -> Bounds:
    with np.errstate(divide="ignore"):
        lower_rows, upper_rows = ([np.log(row) for row in rows] for rows in (merged, apart))
    if measure in _MEASURES:
        compute = _MEASURES[measure]
        return Bounds(float(compute(*lower_rows)), float(compute(*upper_rows)))
    if measure in ("kl_ab", "kl_ba"):
        p, q = lower_rows if measure == "kl_ab" else lower_rows[::-1]
        return Bounds(float(divergence.kl(p, q)), math.inf)
    raise ValueError(f"no bounds are known for {measure!r}: there are js, tv, hellinger, kl_ab, kl_ba")


def _part(logprobs: Floats) -> npt.NDArray[np.float64]:
    probs = np.exp(np.asarray(logprobs, dtype=np.float64))
    if probs.ndim != 1 or probs.size == 0 or not np.isfinite(probs).all() or probs.sum() > 1 + 1e-4:
        raise ValueError("expected the log-probabilities of some tokens of one row, [n], that sum to 1 at most")
    return probs


def _rest(probs: npt.NDArray[np.float64]) -> float:
    return max(0.0, 1.0 - float(probs.sum())) + ROUNDING
