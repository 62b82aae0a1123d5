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
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import array_api_compat

Array = Any  # a numpy array or torch tensor

MEASURES: Final = (
    "js",
    "kl_ab",
    "kl_ba",
    "tv",
    "hellinger",
    "entropy_a",
    "entropy_b",
    "delta_logp",
    "top1_agree",
    "top_prob_a",
    "top_prob_b",
    "rank_of_a_in_b",
    "rank_of_b_in_a",
)


class Parameter(NamedTuple):
    """What is written after the colon: a number in [least, most]."""

    name: str
    least: int | float
    most: int | float
    whole: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.least} <= {self.name} <= {self.most})"

    def wants(self) -> str:
        """What may be written after the colon, in words."""
        form = "a whole number" if self.whole else "a decimal such as 2 or 0.5, of six places at most,"
        return f"{self.name} must be {form} from {self.least} to {self.most}"


#: Measures that take a parameter, as in `renyi:0.5`.
FAMILIES: Final = {
    "renyi": Parameter("ALPHA", 0.01, 100, whole=False),
    "renyi_ba": Parameter("ALPHA", 0.01, 100, whole=False),
    "topk_overlap": Parameter("K", 1, 1000, whole=True),
}

#: Measures (and families) in nats, which `units: "bits"` rescales; the others have no unit.
IN_NATS: Final = frozenset({"js", "kl_ab", "kl_ba", "entropy_a", "entropy_b", "delta_logp", "renyi", "renyi_ba"})

_MIRRORED: Final = (
    ("kl_ab", "kl_ba"),
    ("renyi", "renyi_ba"),
    ("entropy_a", "entropy_b"),
    ("top_prob_a", "top_prob_b"),
    ("rank_of_a_in_b", "rank_of_b_in_a"),
)
_SWAPPED: Final = dict(_MIRRORED) | {right: left for left, right in _MIRRORED}

LN2 = math.log(2.0)


def parse(name: str) -> tuple[str, float | None]:
    """A measure and its parameter. Raises ValueError, with what is wrong, for anything else."""
    base, _, text = name.partition(":")
    if name in MEASURES:
        return name, None
    if base in FAMILIES and re.fullmatch(pattern(base), name):
        value = float(text)
        if FAMILIES[base].least <= value <= FAMILIES[base].most:
            return base, value
    known = spellings((*MEASURES, *FAMILIES))
    raise ValueError(wrong_parameter(name) or f"unknown measure {name!r}; known: {known}")


def pattern(family: str) -> str:
    """How a measure of this family is spelled, as a regular expression (its limits apart)."""
    return rf"{family}:[0-9]{{1,4}}" + ("" if FAMILIES[family].whole else r"(\.[0-9]{1,6})?")


def wrong_parameter(name: str) -> str | None:
    """What is wrong with what stands after a family's name; None where no family is named.

    It is quoted only where it is as good as a number: errors hold nothing else that a request may have brought.
    """
    base, _, text = name.partition(":")
    if base not in FAMILIES:
        return None
    quoted = f", not {text}" if re.fullmatch(r"[0-9eE.+-]{1,20}", text) else ""
    return f"{FAMILIES[base].wants()} in {base}:{FAMILIES[base].name}{quoted}"


def spellings(names: Iterable[str]) -> str:
    """Measures and families as an error message lists them."""
    return ", ".join(f"{name}:{FAMILIES[name]}" if name in FAMILIES else name for name in names)


def in_nats(name: str) -> bool:
    """Whether a measure, with or without a parameter, has the unit nats."""
    return name.partition(":")[0] in IN_NATS


def swapped(name: str) -> str:
    """What a measure of (A, B) is called as one of (B, A). `delta_logp` keeps its name and changes its sign."""
    base, colon, text = name.partition(":")
    return _SWAPPED.get(base, base) + colon + text


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
    total = xp.sum(mean * _entropy_gap(xp.tanh(_safe_difference(la, lb) / 2)), axis=-1)
    return xp.clip(total, max=LN2)  # float32 rows that sum to a little over 1 may exceed it


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


def renyi(logp: Array, logq: Array, alpha: float) -> Array:
    """Rényi divergence of order alpha > 0 in nats, log(sum p^alpha q^(1-alpha)) / (alpha - 1); KL(P||Q) at 1.

    +inf for disjoint supports, and from order 1 on where P gives mass to a token Q excludes. `[..., V]` twice ->
    `[...]` float64.

    Rényi, "On measures of entropy and information", 1961; van Erven, Harremoës, "Rényi divergence and Kullback-Leibler
    divergence", IEEE Trans. Inf. Theory 60(7), 2014.

    Near 0 the sum is 1 + x with s = 1 - alpha and x of terms of one sign,

        x = sum p (e^sd - 1 - s (e^d - 1))                over all tokens; where p = 0 a term is -s q
    """
    if alpha == 1:
        return kl(logp, logq)
    la, lb = _float64(logp), _float64(logq)
    xp = array_api_compat.array_namespace(la)
    s = 1.0 - alpha
    p, q = xp.exp(la), xp.exp(lb)
    d = _safe_difference(la, lb)
    zero = xp.zeros_like(p)
    here = la > -math.inf  # not p > 0: what underflows may still be most of the sum
    power = xp.where(here, la + s * xp.where(here, d, zero), zero - math.inf)  # log of p^alpha q^(1-alpha)
    highest = xp.max(power, axis=-1, keepdims=True)
    highest = xp.where(xp.isinf(highest), xp.zeros_like(highest), highest)
    total = xp.sum(xp.exp(power - highest), axis=-1)
    some = total > 0
    log_sum = xp.where(some, xp.log(xp.where(some, total, xp.ones_like(total))), -math.inf) + highest[..., 0]

    close = xp.abs(d) < _SMALL
    small = xp.where(close, d, zero)
    near = p * (_exp_minus_1_minus_any(s * small) - s * _exp_minus_1_minus(small))
    # Where the clamp bites the sum is far from 1, and x is not used.
    far = xp.exp(xp.where(power > 1.0, zero + 1.0, power)) - p - s * (q - p)
    x = xp.sum(xp.where(close, near, far), axis=-1)
    one = xp.abs(log_sum) < _SMALL
    return xp.where(one, xp.log1p(xp.where(one, x, xp.zeros_like(x))), log_sum) / -s


def _exp_minus_1_minus_any(x: Array) -> Array:
    """e^x - 1 - x for any x that does not overflow."""
    xp = array_api_compat.array_namespace(x)
    near = xp.abs(x) < _SMALL
    return xp.where(near, _exp_minus_1_minus(xp.where(near, x, xp.zeros_like(x))), xp.expm1(x) - x)


def top_prob(logp: Array) -> Array:
    """The probability of the most likely token. `[..., V]` -> `[...]` float64."""
    xp = array_api_compat.array_namespace(logp)
    return xp.exp(_float64(xp.max(logp, axis=-1)))


def rank_of_best(logp: Array, logq: Array) -> Array:
    """The rank of Q's most likely token under P, 1 for P's own best: `[..., V]` twice -> `[...]` float64.

    Of equals the lower id ranks better, in both rows. 1 is an unshifted position, 2 and 3 a marginal, more a shifted
    one: Lin et al., "The unlocking spell on base LLMs" (URIAL), ICLR 2024, section 2.
    """
    xp = array_api_compat.array_namespace(logp, logq)
    best = xp.argmax(logq, axis=-1, keepdims=True)
    value = xp.take_along_axis(logp, best, axis=-1)
    ids = xp.arange(logp.shape[-1], dtype=best.dtype, device=array_api_compat.device(logp))
    ahead = (logp > value) | ((logp == value) & (ids < best))
    return xp.sum(xp.astype(ahead, xp.float64), axis=-1) + 1.0


def topk_overlap(logp: Array, logq: Array, k: int) -> Array:
    """The share of the k most likely tokens the two rows have in common, in [0, 1]: `[..., V]` twice -> `[...]`.

    Of equals the lower ids are in. A token a row excludes is not among its k: where both rows have fewer than k
    tokens, the larger number stands in for k, so that equal rows give 1 and disjoint supports 0.
    """
    xp = array_api_compat.array_namespace(logp, logq)
    top_p, top_q = _top_k(logp, k), _top_k(logq, k)
    counts = [xp.sum(xp.astype(tokens, xp.float64), axis=-1) for tokens in (top_p & top_q, top_p, top_q)]
    return counts[0] / xp.maximum(counts[1], counts[2])


def _top_k(logp: Array, k: int) -> Array:
    xp = array_api_compat.array_namespace(logp)
    k = min(k, logp.shape[-1])
    if array_api_compat.is_torch_array(logp):
        least = logp.topk(k, dim=-1).values[..., -1:]
    else:
        least = xp.partition(logp, -k, axis=-1)[..., -k][..., None]
    above, at = logp > least, logp == least
    room = k - xp.sum(xp.astype(above, xp.int64), axis=-1, keepdims=True)
    first = xp.cumulative_sum(xp.astype(at, xp.int64), axis=-1) <= room
    return (above | (at & first)) & ~xp.isinf(logp)


def gather(logp: Array, token_ids: Array) -> Array:
    """The log-probability of one token per row: `[T, V]`, `[T]` -> `[T]` float64."""
    xp = array_api_compat.array_namespace(logp)
    return _float64(xp.take_along_axis(logp, token_ids[..., None], axis=-1)[..., 0])


def compute(logp: Array, logq: Array, measures: Iterable[str], token_ids: Array | None = None) -> dict[str, Array]:
    """Several measures of A's rows `logp` and B's rows `logq`, each `[T]` float64 (see `MEASURES` and `FAMILIES`).

    `delta_logp` (log q - log p of the scored token) needs `token_ids` `[T]`: 0 where both exclude it,
    +inf or -inf where one does.
    """
    return {name: _compute(logp, logq, *parse(name), token_ids) for name in measures}


def _compute(logp: Array, logq: Array, measure: str, parameter: float | None, token_ids: Array | None) -> Array:
    xp = array_api_compat.array_namespace(logp, logq)
    match measure, parameter:
        case "js", _:
            return js(logp, logq)
        case "kl_ab", _:
            return kl(logp, logq)
        case "kl_ba", _:
            return kl(logq, logp)
        case "tv", _:
            return tv(logp, logq)
        case "hellinger", _:
            return hellinger(logp, logq)
        case "entropy_a", _:
            return entropy(logp)
        case "entropy_b", _:
            return entropy(logq)
        case "top1_agree", _:
            return xp.astype(xp.argmax(logp, axis=-1) == xp.argmax(logq, axis=-1), xp.float64)
        case "top_prob_a", _:
            return top_prob(logp)
        case "top_prob_b", _:
            return top_prob(logq)
        case "rank_of_b_in_a", _:
            return rank_of_best(logp, logq)
        case "rank_of_a_in_b", _:
            return rank_of_best(logq, logp)
        case "renyi", float(alpha):
            return renyi(logp, logq, alpha)
        case "renyi_ba", float(alpha):
            return renyi(logq, logp, alpha)
        case "topk_overlap", float(k):
            return topk_overlap(logp, logq, int(k))
        case _:  # delta_logp
            if token_ids is None:
                raise ValueError("delta_logp needs the scored token_ids")
            return _safe_difference(gather(logp, token_ids), gather(logq, token_ids))
