"""All measures of two rows at once, on a CPU: two sweeps over both rows, and nothing of a row's size beside them.

It takes logits or log-probabilities in float32, bfloat16 or float16 and computes what `rl_onoff.divergence` defines, by
the same forms without cancellation, block by block: the first sweep finds the normalisers, the second the measures.
With d = (y - x) + (log Z_p - log Z_q), where y - x is exact for neighbouring floats, equal rows give exactly 0, and
values near 1e-8 keep six digits. Arithmetic is in float32 and sums over blocks in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from rl_onoff import divergence
from workers.vectorised import BLOCK, FAST, as_bits, as_float, compiled, disorder, exp, f4, i4, log_of_share, order

Column = npt.NDArray[np.float64]

#: How the entries of a row are stored.
FORMS: Final = {"float32": 0, "bfloat16": 1, "float16": 2}
#: Stands for -inf and for anything below, so that no arithmetic meets an infinity.
_NOTHING = f4(-1e30)

(_JS, _KL_AB, _KL_BA, _TV, _ENTROPY_A, _ENTROPY_B, _HELLINGER, _TOP_A, _TOP_B, _BEST_A, _BEST_B) = range(11)
(_RANK_OF_B, _RANK_OF_A, _TOKEN_A, _TOKEN_B, _FIRST_RENYI) = range(11, 16)
_COLUMNS: Final = {
    "js": _JS,
    "kl_ab": _KL_AB,
    "kl_ba": _KL_BA,
    "tv": _TV,
    "hellinger": _HELLINGER,
    "entropy_a": _ENTROPY_A,
    "entropy_b": _ENTROPY_B,
    "top_prob_a": _TOP_A,
    "top_prob_b": _TOP_B,
    "rank_of_a_in_b": _RANK_OF_A,
    "rank_of_b_in_a": _RANK_OF_B,
}
_DISTANCES: Final = frozenset({"js", "kl_ab", "kl_ba", "tv", "entropy_a", "entropy_b"})


class Rows(NamedTuple):
    """`[n, columns]` C-contiguous; `form` names what the entries are, half precisions being bit patterns (uint16)."""

    values: npt.NDArray[Any]
    form: str

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Rows:
        """Of a numpy array in float32 or float16, or of bfloat16 bit patterns in uint16. Others raise TypeError."""
        match values.dtype.name:
            case "float32":
                return cls(np.ascontiguousarray(values), "float32")
            case "float16":
                return cls(np.ascontiguousarray(values).view(np.uint16), "float16")
            case "uint16":
                return cls(np.ascontiguousarray(values), "bfloat16")
        raise TypeError(f"rows must be float32, float16 or bfloat16 as uint16, not {values.dtype}")

    def float32(self, index: int, size: int) -> npt.NDArray[np.float32]:
        """One row, widened."""
        row = self.values[index, :size]
        if self.form == "bfloat16":
            return (row.astype(np.uint32) << 16).view(np.float32)
        return row.view(np.float16).astype(np.float32) if self.form == "float16" else row

    def widened(self) -> Rows:
        """All rows in float32."""
        if self.form == "float32":
            return self
        count, size = self.values.shape
        return Rows(np.stack([self.float32(t, size) for t in range(count)]), "float32")


class Compared(NamedTuple):
    """Measures of n positions by name, and the log-probabilities of the scored tokens, `[n]` float64 each.

    Where a row holds NaN or +inf everything of its position is NaN.
    """

    measures: dict[str, Column]
    logprobs_a: Column
    logprobs_b: Column
    top1_agree: Column


def compare(
    a: Rows,
    b: Rows,
    measures: Iterable[str],
    token_ids: Sequence[int] | npt.NDArray[np.int64],
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    normalised: bool = False,
    threads: int = 1,
) -> Compared:
    """Measures (see `divergence.MEASURES`) of A's and B's rows `[n, columns]`, of their first `vocab_size` entries.

    Rows are logits, or log-probabilities, which are normalised again unless `normalised` says that they are. Scratch
    memory: 32 kB a thread (`topk_overlap`: a few rows).
    """
    parsed = {name: divergence.parse(name) for name in measures}
    if a.form != b.form:
        a, b = a.widened(), b.widened()
    size = a.values.shape[1] if vocab_size is None else vocab_size
    count = a.values.shape[0]
    asked = {base for base, _ in parsed.values()}
    orders = [
        value if base == "renyi" else -value for base, value in parsed.values() if value and base.startswith("renyi")
    ]
    out = np.empty((count, _FIRST_RENYI + len(orders)))
    plan = np.array(
        [
            bool(asked & _DISTANCES),
            "hellinger" in asked,
            "rank_of_b_in_a" in asked,
            "rank_of_a_in_b" in asked,
            normalised,
        ]
    )
    ids = np.asarray(token_ids, dtype=np.int64)
    scale = 1.0 / temperature

    def work(begin: int, end: int) -> None:
        part = slice(begin, end)
        _compare(
            a.values[part],
            b.values[part],
            FORMS[a.form],
            FORMS[b.form],
            size,
            f4(scale),
            ids[part],
            plan,
            np.array(orders, dtype=np.float64),
            out[part],
        )

    _in_parts(work, count, threads)
    found = iter(range(_FIRST_RENYI, out.shape[1]))
    columns: dict[str, Column] = {}
    for name, (base, value) in parsed.items():
        if base.startswith("renyi"):
            columns[name] = out[:, next(found)].copy()
        elif base == "topk_overlap" and value is not None:
            columns[name] = _overlaps(a, b, size, int(value))
        elif base == "top1_agree":
            columns[name] = _agreement(out)
        elif base == "delta_logp":
            columns[name] = _difference(out)
        else:
            columns[name] = out[:, _COLUMNS[base]].copy()
    return Compared(columns, out[:, _TOKEN_A].copy(), out[:, _TOKEN_B].copy(), _agreement(out))


def _agreement(out: Column) -> Column:
    agree: Column = (out[:, _BEST_A] == out[:, _BEST_B]).astype(np.float64)
    return agree


def _difference(out: Column) -> Column:
    """log q - log p of the scored token; 0 where neither model can emit it."""
    a, b = out[:, _TOKEN_A], out[:, _TOKEN_B]
    neither = np.isneginf(a) & np.isneginf(b)
    gap: Column = np.where(neither, 0.0, b) - np.where(neither, 0.0, a)
    return gap


def _overlaps(a: Rows, b: Rows, size: int, k: int) -> Column:
    """Row by row: array code over many rows at once would need many times their memory."""
    rows = ((a.float32(t, size)[None], b.float32(t, size)[None]) for t in range(a.values.shape[0]))
    return np.array([divergence.topk_overlap(p, q, k)[0] for p, q in rows], dtype=np.float64)


def _in_parts(work: Any, count: int, threads: int) -> None:
    threads = min(threads, count)
    if threads < 2:
        work(0, count)
        return
    cuts = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # the loops hold no lock of the interpreter's
        for done in [pool.submit(work, *cut) for cut in pairwise(cuts)]:
            done.result()


# --------------------------------------------------------------------------------------- compiled loops


@njit(fastmath=FAST)
def _load(source, form, scale, target):  # type: ignore[no-untyped-def]
    """A block as scaled float32, -inf and what is below as `_NOTHING`; NaN stays."""
    n = source.shape[0]
    if form == 0:
        for i in range(n):
            value = f4(source[i]) * scale
            target[i] = _NOTHING if value < _NOTHING else value
    elif form == 1:
        for i in range(n):
            value = as_float(i4(source[i]) << i4(16)) * scale
            target[i] = _NOTHING if value < _NOTHING else value
    else:
        for i in range(n):
            bits = i4(source[i])
            # A product rebases the exponent, exactly for subnormals too; infinity and NaN need a second one.
            value = as_float((bits & i4(0x7FFF)) << i4(13)) * f4(2.0**112)
            value = value * f4(2.0**112) if value >= f4(65536.0) else value
            value = as_float(as_bits(value) | ((bits & i4(0x8000)) << i4(16))) * scale
            target[i] = _NOTHING if value < _NOTHING else value


@njit(fastmath=FAST)
def _extremes(x):  # type: ignore[no-untyped-def]
    """The largest and the smallest entry as `order` has them; NaN lies beyond one or the other."""
    highest, lowest = i4(-(2**31)), i4(2**31 - 1)
    for i in range(x.shape[0]):
        key = order(x[i])
        highest, lowest = max(highest, key), min(lowest, key)
    return highest, lowest


@njit(fastmath=FAST)
def _sum_exp(x, highest):  # type: ignore[no-untyped-def]
    total = f4(0.0)
    for i in range(x.shape[0]):
        total += exp(x[i] - highest)
    return total


@njit
def _normaliser(row, form, size, scale, sums, x):  # type: ignore[no-untyped-def]
    """Largest entry, its first place, log of the sum of exponentials beyond it, and entries that need a closer look."""
    top, place, total, odd = i4(-(2**31)), 0, 0.0, False
    largest = f4(0.0)
    least, most = order(_NOTHING), order(f4(math.inf))
    for begin in range(0, size, BLOCK):
        block = x[: min(BLOCK, size - begin)]
        _load(row[begin : begin + block.shape[0]], form, scale, block)
        highest, lowest = _extremes(block)
        odd |= highest >= most or lowest <= least
        if highest > top:
            value = disorder(highest)
            if sums and begin > 0:
                total *= math.exp(np.float64(largest) - np.float64(value))
            top, largest = highest, value
            place = begin
            while place - begin < block.shape[0] and block[place - begin] != value:
                place += 1
        if sums:
            total += _sum_exp(block, largest)
    return largest, place, (math.log(total) if sums else 0.0), odd


@njit
def _shifts(zp, zq):  # type: ignore[no-untyped-def]
    """The normalisers in float32, what their rounding does to probabilities, and their difference."""
    lp, lq = f4(zp), f4(zq)
    return lp, lq, f4(math.exp(np.float64(lp) - zp)), f4(math.exp(np.float64(lq) - zq)), f4(zp - zq)


@njit(fastmath=FAST)
def _distances(x, y, lp, lq, cp, cq, dz):  # type: ignore[no-untyped-def]
    s0, s1, s2, s3, s4, s5 = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
    for i in range(x.shape[0]):
        la, lb = x[i] - lp, y[i] - lq
        d = (y[i] - x[i]) + dz
        p, q = cp * exp(la), cq * exp(lb)
        size = abs(d)
        # Near: series in d. Far: closed forms, which lose no digits there. A blend vectorises, a branch not.
        near = f4(size < f4(0.25))
        far = f4(1) - near
        c = d * near
        c2 = c * c
        even = c2 * (f4(0.5) + c2 * (f4(1 / 24) + c2 * f4(1 / 720)))
        odd = c * c2 * (f4(1 / 6) + c2 * (f4(1 / 120) + c2 * f4(1 / 5040)))
        half = f4(0.5) * c
        square = half * half
        tanh = half * (f4(1) + square * (f4(-1 / 3) + square * (f4(2 / 15) + square * f4(-17 / 315))))
        t2 = tanh * tanh
        series = (p + q) * t2 * (f4(0.5) + t2 * (f4(1 / 12) + t2 * (f4(1 / 30) + t2 * f4(1 / 56))))
        larger = log_of_share(exp(-size))  # of the larger of p, q over their mean; the smaller's is `size` less
        closed = p * (larger - f4(0.5) * (size + d)) + q * (larger - f4(0.5) * (size - d))
        gap = (q - p) * far
        s0 += series + far * closed
        s1 += p * (even + odd) + (gap - p * (d * far))
        s2 += q * (even - odd) - (gap - q * (d * far))
        s3 += p * abs(c + even + odd) + abs(gap)
        s4 += p * la
        s5 += q * lb
    return s0, s1, s2, s3, s4, s5


@njit(fastmath=FAST)
def _root_gaps(x, y, lp, lq, cp, cq, dz):  # type: ignore[no-untyped-def]
    """Sum of (sqrt q - sqrt p)^2."""
    total = f4(0)
    for i in range(x.shape[0]):
        d = f4(0.5) * ((y[i] - x[i]) + dz)
        root_p, root_q = cp * exp(f4(0.5) * (x[i] - lp)), cq * exp(f4(0.5) * (y[i] - lq))
        near = f4(abs(d) < f4(0.125))
        c = d * near
        step = c * (f4(1) + c * (f4(0.5) + c * (f4(1 / 6) + c * (f4(1 / 24) + c * f4(1 / 120)))))
        gap = root_p * step + (f4(1) - near) * (root_q - root_p)
        total += gap * gap
    return total


@njit(fastmath=FAST)
def _powers(x, y, lp, lq, cp, cq, dz, s, power):  # type: ignore[no-untyped-def]
    """log of p^(1-s) q^s into `power`; sum of p (e^sd - 1 - s (e^d - 1)), all clamped where it is not used."""
    total = f4(0)
    for i in range(x.shape[0]):
        la, lb = x[i] - lp, y[i] - lq
        d = (y[i] - x[i]) + dz
        w = la + s * d if min(la, lb) > f4(-1e29) else _NOTHING  # a product with _NOTHING would be reassociated
        power[i] = w
        p, q = cp * exp(la), cq * exp(lb)
        near = f4(abs(d) < f4(0.25)) * f4(abs(s * d) < f4(0.25))
        c, e = d * near, s * d * near
        rise = c * c * (f4(0.5) + c * (f4(1 / 6) + c * (f4(1 / 24) + c * (f4(1 / 120) + c * f4(1 / 720)))))
        risen = e * e * (f4(0.5) + e * (f4(1 / 6) + e * (f4(1 / 24) + e * (f4(1 / 120) + e * f4(1 / 720)))))
        raised = exp(min(w, f4(1)) - f4(1)) * (cp * f4(math.e))
        total += near * p * (risen - s * rise) + (f4(1) - near) * (raised - p - s * (q - p))
    return total


@njit
def _renyi(row_a, row_b, form_a, form_b, size, scale, zp, zq, alpha, x, y, power):  # type: ignore[no-untyped-def]
    """As `divergence.renyi`; of (B, A) where alpha is negative."""
    if alpha < 0:
        row_a, row_b, form_a, form_b = row_b, row_a, form_b, form_a
        zp, zq, alpha = zq, zp, -alpha
    s = 1.0 - alpha
    lp, lq, cp, cq, dz = _shifts(zp, zq)
    highest, total, change = -math.inf, 0.0, 0.0
    for begin in range(0, size, BLOCK):
        n = min(BLOCK, size - begin)
        _load(row_a[begin : begin + n], form_a, scale, x[:n])
        _load(row_b[begin : begin + n], form_b, scale, y[:n])
        change += _powers(x[:n], y[:n], lp, lq, cp, cq, dz, f4(s), power[:n])
        value = disorder(_extremes(power[:n])[0])
        if value > highest:
            total *= math.exp(highest - np.float64(value))
            highest = np.float64(value)
        total += _sum_exp(power[:n], f4(highest))
    if highest < -1e29:
        return math.inf
    log_sum = highest + math.log(total) + (np.float64(lp) - zp)
    if abs(log_sum) < 0.25:
        log_sum = math.log1p(change)
    return log_sum / -s


@njit
def _at(row, form, scale, i, cell):  # type: ignore[no-untyped-def]
    _load(row[i : i + 1], form, scale, cell)
    return cell[0]


@njit
def _support(row_a, row_b, form_a, form_b, size, scale, x, y):  # type: ignore[no-untyped-def]
    """Whether A, and whether B, excludes a token the other can emit; and whether an entry is NaN or +inf."""
    a_lacks, b_lacks, wrong = False, False, False
    for begin in range(0, size, BLOCK):
        n = min(BLOCK, size - begin)
        _load(row_a[begin : begin + n], form_a, scale, x[:n])
        _load(row_b[begin : begin + n], form_b, scale, y[:n])
        for i in range(n):
            a_lacks |= x[i] == _NOTHING and y[i] != _NOTHING
            b_lacks |= y[i] == _NOTHING and x[i] != _NOTHING
            wrong |= not (x[i] < math.inf and y[i] < math.inf)
    return a_lacks, b_lacks, wrong


@njit(fastmath=FAST)
def _count_ahead(x, value, ties):  # type: ignore[no-untyped-def]
    """Entries above `value`, and those equal to it among the first `ties`."""
    ahead = i4(0)
    for i in range(x.shape[0]):
        ahead += i4(x[i] > value)
    for i in range(min(ties, x.shape[0])):
        ahead += i4(x[i] == value)
    return ahead


@njit
def _rank(row, form, size, scale, place, x):  # type: ignore[no-untyped-def]
    value = _at(row, form, scale, place, x[:1])
    ahead = 0
    for begin in range(0, size, BLOCK):
        n = min(BLOCK, size - begin)
        _load(row[begin : begin + n], form, scale, x[:n])
        ahead += _count_ahead(x[:n], value, max(0, place - begin))
    return 1.0 + ahead


@compiled
def _compare(a, b, form_a, form_b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    x, y, power = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    distances, hellinger, rank_of_b, rank_of_a, normalised = plan[0], plan[1], plan[2], plan[3], plan[4]
    for t in range(a.shape[0]):
        row_a, row_b, found = a[t], b[t], out[t]
        top_p, best_p, log_p, odd_p = _normaliser(row_a, form_a, size, scale, not normalised, x)
        top_q, best_q, log_q, odd_q = _normaliser(row_b, form_b, size, scale, not normalised, y)
        a_lacks, b_lacks, wrong = False, False, False
        if odd_p or odd_q:
            a_lacks, b_lacks, wrong = _support(row_a, row_b, form_a, form_b, size, scale, x, y)
        if wrong or top_p <= _NOTHING or top_q <= _NOTHING:
            found[:] = math.nan
            continue
        zp = 0.0 if normalised else np.float64(top_p) + log_p
        zq = 0.0 if normalised else np.float64(top_q) + log_q
        lp, lq, cp, cq, dz = _shifts(zp, zq)
        rest_p, rest_q = zp - np.float64(lp), zq - np.float64(lq)
        found[_BEST_A], found[_BEST_B] = best_p, best_q
        found[_TOP_A], found[_TOP_B] = math.exp(np.float64(top_p) - zp), math.exp(np.float64(top_q) - zq)
        token_p = np.float64(_at(row_a, form_a, scale, token_ids[t], x[:1]))
        token_q = np.float64(_at(row_b, form_b, scale, token_ids[t], y[:1]))
        found[_TOKEN_A] = token_p - zp if token_p > _NOTHING else -math.inf
        found[_TOKEN_B] = token_q - zq if token_q > _NOTHING else -math.inf
        if distances or hellinger:
            root_cp, root_cq = f4(math.sqrt(cp)), f4(math.sqrt(cq))
            js, kl_ab, kl_ba, tv, entropy_a, entropy_b, roots = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for begin in range(0, size, BLOCK):
                n = min(BLOCK, size - begin)
                _load(row_a[begin : begin + n], form_a, scale, x[:n])
                _load(row_b[begin : begin + n], form_b, scale, y[:n])
                if distances:
                    s0, s1, s2, s3, s4, s5 = _distances(x[:n], y[:n], lp, lq, cp, cq, dz)
                    js += s0
                    kl_ab += s1
                    kl_ba += s2
                    tv += s3
                    entropy_a -= s4
                    entropy_b -= s5
                if hellinger:
                    roots += _root_gaps(x[:n], y[:n], lp, lq, root_cp, root_cq, dz)
            found[_JS] = min(0.5 * js, math.log(2.0))  # rounding may carry disjoint rows a little beyond
            found[_KL_AB] = math.inf if b_lacks else max(kl_ab, 0.0)
            found[_KL_BA] = math.inf if a_lacks else max(kl_ba, 0.0)
            found[_TV] = min(0.5 * tv, 1.0)
            found[_ENTROPY_A], found[_ENTROPY_B] = max(entropy_a + rest_p, 0.0), max(entropy_b + rest_q, 0.0)
            found[_HELLINGER] = min(math.sqrt(0.5 * roots), 1.0)
        if rank_of_b:
            found[_RANK_OF_B] = _rank(row_a, form_a, size, scale, best_q, x)
        if rank_of_a:
            found[_RANK_OF_A] = _rank(row_b, form_b, size, scale, best_p, x)
        for k in range(orders.shape[0]):
            alpha = orders[k]
            lacks = a_lacks if alpha < 0 else b_lacks
            if abs(alpha) == 1.0:
                found[_FIRST_RENYI + k] = found[_KL_BA] if alpha < 0 else found[_KL_AB]
            elif abs(alpha) > 1.0 and lacks:
                found[_FIRST_RENYI + k] = math.inf
            else:
                found[_FIRST_RENYI + k] = _renyi(row_a, row_b, form_a, form_b, size, scale, zp, zq, alpha, x, y, power)
