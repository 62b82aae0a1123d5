"""What is certain of two rows of which only the most likely tokens are known: stored runs, remote APIs.

Log-probabilities must be those of whole rows (normalised over the full vocabulary), not of the k tokens alone. Where an
id is among the top k of one row only, its log-probability in the other must be known too (`token_logprobs` of an API,
or a row scored at given ids); `from_top_k` handles rows that know nothing beyond their own k.

A listed value l is not the row's: it is off by up to its precision e (`error`), so p lies in [exp(l - e), exp(l + e)],
and the rest of the mass, 1 - sum p, in an interval too. All measures are sums over tokens of an f(p, q) >= 0 (KL's is
p log(p/q) - p + q, Hellinger's sum stands under a root), convex, homogeneous of degree one, 0 where p = q, falling in p
below q and rising above. Hence, whatever rows are behind the values:

    f over the unlisted tokens of both rows >= f(rest of p, rest of q)              (merging cells never raises it)
                                            <= f(rest of p, 0) + f(0, rest of q)    (rests that do not meet)
    f over an interval of p and one of q    >= f where they come closest, <= the larger f of the two far corners

KL has no upper bound: the unknown part of Q may hold next to nothing where P has its rest. Where one row does not list
a token of the other's (`from_top_k`), the least over all that it may be is bounded by duality, see `_lowest`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rl_onoff import divergence
from rl_onoff.partial_rows import DOUBLE, TINY, Array, Floats, Part, PartialRow, Precision, error

__all__ = ["BOUNDED", "Bounds", "Known", "Precision", "error", "from_top_k", "from_union", "known_from_top_k"]

Ids = npt.NDArray[np.integer]

#: Ratios q/p that are looked at lie in [exp(-60), exp(60)].
_WIDEST: Final = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """lower <= the measure <= upper, in nats where it has a unit. `upper` is inf where there is none."""

    lower: float
    upper: float

    def decides(self, threshold: float) -> bool:
        """Whether the bounds tell on which side of the threshold the measure lies."""
        return self.lower > threshold or self.upper <= threshold


def from_union(logp: Floats, logq: Floats, measure: str = "js", *, precision: Precision | None = None) -> Bounds:
    """Bounds from the log-probabilities `[n]` of the same n distinct ids in both rows, each off by `error` at most.

    `measure`: js, tv, hellinger, kl_ab, kl_ba. Raises ValueError for others, and for what is no part of a row.
    """
    p, q = Part.of(logp, precision), Part.of(logq, precision)
    if p.least.shape != q.least.shape:
        raise ValueError(f"the rows must give the same ids: {p.least.size} and {q.least.size} log-probabilities")
    every = np.arange(p.least.size)
    return Known(PartialRow(p, every), PartialRow(q, every)).bounds(measure)


def from_top_k(
    ids_p: Ids, logp: Floats, ids_q: Ids, logq: Floats, measure: str = "js", *, precision: Precision | None = None
) -> Bounds:
    """Bounds from each row's own most likely ids and their log-probabilities, `[k]` of either row, in any order.

    An id one row does not list has there at most the least listed probability, and at most the rest of the mass. Raises
    ValueError as `from_union` does, and for ids listed twice.
    """
    return known_from_top_k(ids_p, logp, ids_q, logq, precision=precision).bounds(measure)


def known_from_top_k(
    ids_p: Ids, logp: Floats, ids_q: Ids, logq: Floats, *, precision: Precision | None = None
) -> Known:
    """As `from_top_k`, for the bounds of several measures of the same rows."""
    p, q = Part.of(logp, precision), Part.of(logq, precision)
    for ids, part in ((ids_p, p), (ids_q, q)):
        if np.shape(ids) != part.least.shape or np.unique(ids).size != part.least.size:
            raise ValueError("ids must be distinct, one for each log-probability")
    _, in_p, in_q = np.intersect1d(ids_p, ids_q, return_indices=True)
    return Known(PartialRow(p, in_p), PartialRow(q, in_q))


class Known:
    """What is known of two rows; made by `known_from_top_k`."""

    def __init__(self, p: PartialRow, q: PartialRow) -> None:
        self._p, self._q = p, q

    def bounds(self, measure: str) -> Bounds:
        """Of js, tv, hellinger, kl_ab or kl_ba. Raises ValueError for others."""
        if measure == "kl_ba":
            return Known(self._q, self._p).bounds("kl_ab")
        if measure not in _MEASURES:
            raise ValueError(f"no bounds are known for {measure!r}: there are {', '.join(BOUNDED)}")
        form = _MEASURES[measure]
        with np.errstate(divide="ignore"):
            lower, upper = self._lowest(form), self._highest(form) if form.most < math.inf else math.inf
        if measure == "hellinger":
            lower, upper = math.sqrt(lower), math.sqrt(upper)
        return Bounds(min(lower, form.most), min(upper, form.most))

    def _highest(self, form: _Form) -> float:
        p, q = self._p, self._q
        both = np.maximum(form.cells(p.both.least, q.both.most), form.cells(p.both.most, q.both.least))
        apart = [max(0.0, 1.0 + DOUBLE - float(row.both.least.sum())) for row in (p, q)]
        apart_p, apart_q = np.array([apart[0], 0.0]), np.array([0.0, apart[1]])
        return (1 + DOUBLE) * float(both.sum() + form.cells(apart_p, apart_q).sum())

    def _lowest(self, form: _Form) -> float:
        """By duality: with any plane a p + b q <= f(p, q), over all ids but those that both rows list

            sum f >= a (rest of p) + b (rest of q) + sum over p's own ids of min over q (f(p, q) - b q)
                                                   + sum over q's own ids of min over p (f(p, q) - a p)

        It is highest where the plane touches f at the ratio q/p that the rests have when all ratios are as even as the
        caps allow.
        """
        p, q = self._p, self._q
        near = np.clip(q.both.least, p.both.least, p.both.most)
        both = form.cells(near, np.clip(near, q.both.least, q.both.most))
        if p.own.least.size == q.own.least.size == 0:
            near = np.clip(q.rest.least, p.rest.least, p.rest.most)
            rest = form.cells(near, np.clip(near, q.rest.least, q.rest.most))
            return max(0.0, (1 - DOUBLE) * float(both.sum() + rest.sum()))
        # A plane by two ratios, at_p <= at_q, lies below f: slopes in p fall with the ratio q/p, slopes in q rise.
        planes = form.planes or [
            _Plane(form.slopes(at_q)[0], form.slopes(at_p)[1], at_p, at_q) for at_p, at_q in self._ratios
        ]
        return max(0.0, *(_sum(both, *self._under(form, plane)) for plane in planes))

    def _under(self, form: _Form, plane: _Plane) -> list[Array]:
        """The terms of the lower bound by this plane, but those over ids that both rows list."""
        p, q = self._p, self._q
        own_p = _worst(p.own, q.cap, float(form.cells(*_pair(1.0, plane.at_p))[0]) - plane.b * plane.at_p)
        q_of = np.clip(plane.at_p * own_p, TINY, q.cap)  # 0, and KL infinite, if excluded alone
        own_q = _worst(q.own, p.cap, float(form.cells(*_pair(1.0 / plane.at_q, 1.0))[0]) - plane.a / plane.at_q)
        p_of = np.minimum(p.cap, own_q / plane.at_q)
        rest_p = p.rest.least if plane.a > 0 else p.rest.most
        rest_q = q.rest.least if plane.b > 0 else q.rest.most
        return [
            form.cells(own_p, q_of),
            -plane.b * q_of,
            form.cells(p_of, own_q),
            -plane.a * p_of,
            plane.a * rest_p,
            plane.b * rest_q,
        ]

    @cached_property
    def _ratios(self) -> list[tuple[float, float]]:
        """Ratios q/p to try, at p's own ids and at q's: the largest and the least there may be, and 1 in between."""
        most, least = (_even(self._p, self._q, at) for at in (("least", "most"), ("most", "least")))
        below, above = (min(1.0, most[0]), min(1.0, most[1])), (max(1.0, least[0]), max(1.0, least[1]))
        return list(dict.fromkeys([most, least, below, above]))


class _Plane(NamedTuple):
    """a p + b q <= f(p, q). At p's own ids f(p, q) - b q is least at the ratio q/p `at_p`; at q's own ids `at_q`."""

    a: float
    b: float
    at_p: float
    at_q: float


class _Form(NamedTuple):
    """f(p, q) of cells `[n]`, its slopes in p and in q where q/p is a ratio, its largest sum.

    `planes`: all worth trying, where they are few.
    """

    cells: Callable[[Array, Array], Array]
    slopes: Callable[[float], tuple[float, float]]
    most: float
    planes: list[_Plane] | None = None


def _cells(measure: Callable[[Array, Array], Array], power: int = 1) -> Callable[[Array, Array], Array]:
    def cells(p: Array, q: Array) -> Array:
        found: Array = measure(np.log(p)[:, None], np.log(q)[:, None]) ** power
        return found

    return cells


_MEASURES: Final = {
    "js": _Form(
        _cells(divergence.js),
        lambda ratio: (-math.log((1 + ratio) / 2) / 2, -math.log((1 + 1 / ratio) / 2) / 2),
        divergence.LN2,
    ),
    "tv": _Form(
        _cells(divergence.tv),
        lambda ratio: (math.copysign(0.5, 1 - ratio), math.copysign(0.5, ratio - 1)),
        1.0,
        [_Plane(0.5, -0.5, 1.0, 1.0), _Plane(-0.5, 0.5, 1.0, 1.0), _Plane(-0.5, -0.5, 1.0, 1.0)],
    ),
    "hellinger": _Form(
        _cells(divergence.hellinger, 2),
        lambda ratio: ((1 - math.sqrt(ratio)) / 2, (1 - 1 / math.sqrt(ratio)) / 2),
        1.0,
    ),
    "kl_ab": _Form(_cells(divergence.kl), lambda ratio: (-math.log(ratio), 1 - 1 / ratio), math.inf),
}
#: Measures that bounds are known for.
BOUNDED: Final = (*_MEASURES, "kl_ba")


def _even(p: PartialRow, q: PartialRow, at: tuple[str, str]) -> tuple[float, float]:
    """The ratios q/p, at p's own ids and at q's, when all that no cap holds are alike, and that of the rests too.

    Where the rests hold too little for that, what there is of each is spread over the other row's own ids.
    """
    (own_p, rest_p), (own_q, rest_q) = (
        (getattr(row.own, end), float(getattr(row.rest, end)[0])) for row, end in zip((p, q), at, strict=True)
    )

    def left_q(x: float) -> float:
        return rest_q - float(np.minimum(q.cap, math.exp(x) * own_p).sum())

    def left_p(x: float) -> float:
        return rest_p - float(np.minimum(p.cap, math.exp(-x) * own_q).sum())

    highest, lowest = _root(lambda x: -left_q(x)), _root(left_p)
    if highest > lowest:
        highest = lowest = _root(lambda x: math.exp(x) * left_p(x) - left_q(x), lowest, highest)
    return math.exp(highest), math.exp(lowest)


def _root(rising: Callable[[float], float], low: float = -_WIDEST, high: float = _WIDEST) -> float:
    """Where it crosses 0, nearly: any ratio gives a bound, and what it is off by counts only squared."""
    for _ in range(36):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _worst(own: Part, cap: float, slope: float) -> Array:
    """The probabilities of a row's own ids at which the other's best answer costs least.

    That cost is convex: it has this slope up to where the other is at its cap, and is least at the cap if it falls.
    """
    return own.least if slope >= 0 else np.clip(cap, own.least, own.most)


def _pair(p: float, q: float) -> tuple[Array, Array]:
    return np.array([p]), np.array([q])


def _sum(*terms: Array) -> float:
    """The sum, less what rounding may have added to it."""
    every = np.concatenate(terms)
    total = float(every.sum())
    return total if math.isinf(total) else total - DOUBLE * (1 + float(np.abs(every).sum()))
