"""Measures of how two next-token distributions differ, and of each alone: the readable reference.

Arrays in, arrays out, for numpy and torch alike (through array-api-compat). A row is a vector of log-probabilities over
the shared vocabulary, `-inf` where a token cannot occur; functions take `[..., V]` and return `[...]` in float64, in
nats. Direction is always named: `kl_ab` is KL(A||B), the expectation under A.

Forms are chosen so that no term is negative and nothing cancels (equal rows give exactly 0, and values near 1e-8 keep
their digits), without any epsilon (disjoint supports give KL = inf and JS = ln 2). With d = log q - log p:

    KL(P||Q) = sum p (e^d - 1 - d)                    since sum p (e^d - 1) = sum q - sum p = 0
    JS(P,Q)  = sum (p+q)/2 f(tanh(d/2)),  f(t) = ((1+t) ln(1+t) + (1-t) ln(1-t)) / 2
    tanh(d/2) = (q-p)/(q+p)

JS: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37(1), 1991.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import array_api_compat

Array = Any  # a numpy array or torch tensor

Measure = Literal["js", "kl_ab", "kl_ba", "tv", "hellinger", "entropy_a", "entropy_b", "delta_logp", "top1_agree"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

#: Measures in nats, which `units: "bits"` rescales; the others have no unit.
IN_NATS: frozenset[str] = frozenset({"js", "kl_ab", "kl_ba", "entropy_a", "entropy_b", "delta_logp"})

LN2 = math.log(2.0)

# Below this |x| the series are exact to float64 rounding; above it the closed forms lose no digits that matter.
_SMALL = 0.25


def _float64(row: Array) -> Array:
    xp = array_api_compat.array_namespace(row)
    return xp.astype(row, xp.float64)


def _safe_difference(la: Array, lb: Array) -> Array:
    """log q - log p, 0 where neither token can occur."""
    xp = array_api_compat.array_namespace(la)
    neither = xp.isinf(la) & xp.isinf(lb)
    zero = xp.zeros_like(la)
    return xp.where(neither, zero, lb) - xp.where(neither, zero, la)


def _exp_minus_1_minus(d: Array) -> Array:
    """e^d - 1 - d for |d| < 1/4, by its series: relative error below 1e-16."""
    total = d * 0
    for n in range(12, 1, -1):
        total = (total + 1.0) * d / n if n > 2 else (total + 1.0) * d * d / 2
    return total


def _entropy_gap(t: Array) -> Array:
    """f(t) = ((1+t) ln(1+t) + (1-t) ln(1-t)) / 2 on [-1, 1]: even, 0 at 0, ln 2 at both ends."""
    xp = array_api_compat.array_namespace(t)
    t = xp.abs(t)
    t2 = t * t
    series = t2 * 0
    for n in range(11, 0, -1):  # sum of t^2n / (2n (2n-1))
        series = (series + 1.0 / (2 * n * (2 * n - 1))) * t2
    rest = 1.0 - t
    last = xp.where(rest > 0, rest * xp.log(xp.where(rest > 0, rest, xp.ones_like(rest))), xp.zeros_like(rest))
    closed = ((1.0 + t) * xp.log1p(t) + last) / 2
    return xp.where(t < _SMALL, series, closed)


def js(logp: Array, logq: Array) -> Array:
    """Jensen-Shannon divergence in nats, in [0, ln 2]. `[..., V]` twice -> `[...]` float64."""
    la, lb = _float64(logp), _float64(logq)
    xp = array_api_compat.array_namespace(la)
    mean = (xp.exp(la) + xp.exp(lb)) / 2
    return xp.sum(mean * _entropy_gap(xp.tanh(_safe_difference(la, lb) / 2)), axis=-1)


def kl(logp: Array, logq: Array) -> Array:
    """KL(P||Q) in nats; +inf where P gives mass to a token Q excludes. `[..., V]` twice -> `[...]` float64."""
    la, lb = _float64(logp), _float64(logq)
    xp = array_api_compat.array_namespace(la)
    p, q = xp.exp(la), xp.exp(lb)
    d = _safe_difference(la, lb)
    zero = xp.zeros_like(p)
    near = xp.abs(d) < _SMALL
    small = xp.where(near, d, zero)
    wide = (q - p) - p * xp.where(p > 0, d, zero)  # where p = 0, or underflows to it, the term is q alone
    return xp.sum(xp.where(near, p * _exp_minus_1_minus(small), wide), axis=-1)


def tv(logp: Array, logq: Array) -> Array:
    """Total variation distance, in [0, 1]. `[..., V]` twice -> `[...]` float64."""
    xp = array_api_compat.array_namespace(logp)
    return xp.sum(xp.abs(xp.exp(_float64(logp)) - xp.exp(_float64(logq))), axis=-1) / 2


def hellinger(logp: Array, logq: Array) -> Array:
    """Hellinger distance sqrt(sum (sqrt p - sqrt q)^2 / 2), in [0, 1]. `[..., V]` twice -> `[...]` float64."""
    xp = array_api_compat.array_namespace(logp)
    gap = xp.exp(_float64(logp) / 2) - xp.exp(_float64(logq) / 2)
    return xp.sqrt(xp.sum(gap * gap, axis=-1) / 2)


def entropy(logp: Array) -> Array:
    """Shannon entropy in nats. `[..., V]` -> `[...]` float64."""
    la = _float64(logp)
    xp = array_api_compat.array_namespace(la)
    return 0.0 - xp.sum(xp.exp(la) * xp.where(xp.isinf(la), xp.zeros_like(la), la), axis=-1)


def gather(logp: Array, token_ids: Array) -> Array:
    """The log-probability of one token per row: `[T, V]`, `[T]` -> `[T]` float64."""
    la = _float64(logp)
    xp = array_api_compat.array_namespace(la)
    return xp.take_along_axis(la, token_ids[..., None], axis=-1)[..., 0]


def compute(logp: Array, logq: Array, measures: Iterable[str], token_ids: Array | None = None) -> dict[str, Array]:
    """Several measures of A's rows `logp` and B's rows `logq`, each `[T]` float64 (see `MEASURES`).

    `delta_logp` (log q - log p of the scored token) needs `token_ids` `[T]`: 0 where both exclude it,
    +inf or -inf where one does.
    """
    xp = array_api_compat.array_namespace(logp, logq)
    values: dict[str, Array] = {}
    for name in measures:
        match name:
            case "js":
                values[name] = js(logp, logq)
            case "kl_ab":
                values[name] = kl(logp, logq)
            case "kl_ba":
                values[name] = kl(logq, logp)
            case "tv":
                values[name] = tv(logp, logq)
            case "hellinger":
                values[name] = hellinger(logp, logq)
            case "entropy_a":
                values[name] = entropy(logp)
            case "entropy_b":
                values[name] = entropy(logq)
            case "top1_agree":
                same = xp.argmax(logp, axis=-1) == xp.argmax(logq, axis=-1)
                values[name] = xp.astype(same, xp.float64)
            case "delta_logp":
                if token_ids is None:
                    raise ValueError("delta_logp needs the scored token_ids")
                values[name] = _safe_difference(gather(logp, token_ids), gather(logq, token_ids))
            case _:
                raise ValueError(f"unknown measure {name!r}; known: {', '.join(MEASURES)}")
    return values
