"""The compiled loops of `workers.comparison`: both rows block by block, first for the normalisers, then the measures.

With d = (y - x) + (log Z_p - log Z_q), where y - x is exact for neighbouring floats, equal rows give exactly 0, and
values near 1e-8 keep their digits. Arithmetic is in float32, sums over blocks and normalisers in float64; what rounding
a normaliser to float32 does to all probabilities of a row is undone by a factor.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.vectorised import BLOCK, FAST, as_bits, as_float, compiled, disorder, exp, f4, i4, log_of_share, order

#: Stands for -inf and for anything below, so that no arithmetic meets an infinity.
NOTHING = f4(-1e30)

# Columns of what `compare_rows` writes.
(JS, KL_AB, KL_BA, TV, ENTROPY_A, ENTROPY_B, HELLINGER, TOP_A, TOP_B, BEST_A, BEST_B) = range(11)
(RANK_OF_B, RANK_OF_A, TOKEN_A, TOKEN_B, FIRST_RENYI) = range(11, 16)


@njit(fastmath=FAST)
def _load(source, form, scale, target):  # type: ignore[no-untyped-def]
    """A block as scaled float32, -inf and what is below as `NOTHING`; NaN stays."""
    n = source.shape[0]
    if form == 0:
        for i in range(n):
            value = f4(source[i]) * scale
            target[i] = NOTHING if value < NOTHING else value
    elif form == 1:
        for i in range(n):
            value = as_float(i4(source[i]) << i4(16)) * scale
            target[i] = NOTHING if value < NOTHING else value
    else:
        for i in range(n):
            bits = i4(source[i])
            # A product rebases the exponent, exactly for subnormals too; infinity and NaN need a second one.
            value = as_float((bits & i4(0x7FFF)) << i4(13)) * f4(2.0**112)
            value = value * f4(2.0**112) if value >= f4(65536.0) else value
            value = as_float(as_bits(value) | ((bits & i4(0x8000)) << i4(16))) * scale
            target[i] = NOTHING if value < NOTHING else value


@njit(fastmath=FAST)
def _extremes(x):  # type: ignore[no-untyped-def]
    """The largest and the smallest entry as `order` has them; NaN lies beyond one or the other."""
    highest, lowest = i4(-(2**31)), i4(2**31 - 1)
    for i in range(x.shape[0]):
        key = order(x[i])
        highest, lowest = max(highest, key), min(lowest, key)
    return highest, lowest


@njit(fastmath=FAST)
def _load_first(source, form, scale, target):  # type: ignore[no-untyped-def]
    """`_load`, and `_extremes` of it, in one loop where that is the quicker."""
    highest, lowest = i4(-(2**31)), i4(2**31 - 1)
    n = source.shape[0]
    if form == 0:
        for i in range(n):
            value = f4(source[i]) * scale
            value = NOTHING if value < NOTHING else value
            target[i] = value
            highest, lowest = max(highest, order(value)), min(lowest, order(value))
    elif form == 1:
        for i in range(n):
            value = as_float(i4(source[i]) << i4(16)) * scale
            value = NOTHING if value < NOTHING else value
            target[i] = value
            highest, lowest = max(highest, order(value)), min(lowest, order(value))
    else:
        _load(source, form, scale, target)
        highest, lowest = _extremes(target)
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
    least, most = order(NOTHING), order(f4(math.inf))
    for begin in range(0, size, BLOCK):
        block = x[: min(BLOCK, size - begin)]
        highest, lowest = _load_first(row[begin : begin + block.shape[0]], form, scale, block)
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
        size = abs(d)
        ratio = exp(-size)
        # Of the larger one the exponential, of the smaller what d leaves of it.
        p_larger = d < f4(0)
        most = (cp if p_larger else cq) * exp(la if p_larger else lb)
        least = most * ratio
        p, q = (most, least) if p_larger else (least, most)
        both = most + least
        # Near: series in d. Far: closed forms, which lose no digits there. Both are made: a branch does not vectorise.
        near = size < f4(0.25)
        c = d if near else f4(0)
        c2 = c * c
        even = c2 * (f4(0.5) + c2 * (f4(1 / 24) + c2 * f4(1 / 720)))
        odd = c * c2 * (f4(1 / 6) + c2 * (f4(1 / 120) + c2 * f4(1 / 5040)))
        series = both * (c2 * (f4(1 / 8) + c2 * (f4(-1 / 64) + c2 * (f4(1 / 576) + c2 * f4(-17 / 92160)))))
        closed = both * log_of_share(ratio) - least * size
        gap = q - p
        s0 += series if near else closed
        s1 += p * (even + odd) if near else gap - p * d
        s2 += q * (even - odd) if near else q * d - gap
        s3 += p * abs(c + even + odd) if near else abs(gap)
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
        w = la + s * d if min(la, lb) > f4(-1e29) else NOTHING  # a product with NOTHING would be reassociated
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
            a_lacks |= x[i] == NOTHING and y[i] != NOTHING
            b_lacks |= y[i] == NOTHING and x[i] != NOTHING
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
def compare_rows(a, b, form_a, form_b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    x, y, power = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    distances, hellinger, rank_of_b, rank_of_a, normalised = plan[0], plan[1], plan[2], plan[3], plan[4]
    for t in range(a.shape[0]):
        row_a, row_b, found = a[t], b[t], out[t]
        top_p, best_p, log_p, odd_p = _normaliser(row_a, form_a, size, scale, not normalised, x)
        top_q, best_q, log_q, odd_q = _normaliser(row_b, form_b, size, scale, not normalised, y)
        a_lacks, b_lacks, wrong = False, False, False
        if odd_p or odd_q:
            a_lacks, b_lacks, wrong = _support(row_a, row_b, form_a, form_b, size, scale, x, y)
        if wrong or top_p <= NOTHING or top_q <= NOTHING:
            found[:] = math.nan
            continue
        zp = 0.0 if normalised else np.float64(top_p) + log_p
        zq = 0.0 if normalised else np.float64(top_q) + log_q
        lp, lq, cp, cq, dz = _shifts(zp, zq)
        rest_p, rest_q = zp - np.float64(lp), zq - np.float64(lq)
        found[BEST_A], found[BEST_B] = best_p, best_q
        found[TOP_A], found[TOP_B] = math.exp(np.float64(top_p) - zp), math.exp(np.float64(top_q) - zq)
        token_p = np.float64(_at(row_a, form_a, scale, token_ids[t], x[:1]))
        token_q = np.float64(_at(row_b, form_b, scale, token_ids[t], y[:1]))
        found[TOKEN_A] = token_p - zp if token_p > NOTHING else -math.inf
        found[TOKEN_B] = token_q - zq if token_q > NOTHING else -math.inf
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
            found[JS] = min(0.5 * js, math.log(2.0))  # rounding may carry disjoint rows a little beyond
            found[KL_AB] = math.inf if b_lacks else max(kl_ab, 0.0)
            found[KL_BA] = math.inf if a_lacks else max(kl_ba, 0.0)
            found[TV] = min(0.5 * tv, 1.0)
            found[ENTROPY_A], found[ENTROPY_B] = max(entropy_a + rest_p, 0.0), max(entropy_b + rest_q, 0.0)
            found[HELLINGER] = min(math.sqrt(0.5 * roots), 1.0)
        if rank_of_b:
            found[RANK_OF_B] = _rank(row_a, form_a, size, scale, best_q, x)
        if rank_of_a:
            found[RANK_OF_A] = _rank(row_b, form_b, size, scale, best_p, x)
        for k in range(orders.shape[0]):
            alpha = orders[k]
            lacks = a_lacks if alpha < 0 else b_lacks
            if abs(alpha) == 1.0:
                found[FIRST_RENYI + k] = found[KL_BA] if alpha < 0 else found[KL_AB]
            elif abs(alpha) > 1.0 and lacks:
                found[FIRST_RENYI + k] = math.inf
            else:
                found[FIRST_RENYI + k] = _renyi(row_a, row_b, form_a, form_b, size, scale, zp, zq, alpha, x, y, power)
