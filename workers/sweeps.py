"""The compiled loops of `workers.comparison`: both rows block by block, first for the normalisers, then the measures.

With d = (y - x) + (log Z_p - log Z_q), where y - x is exact for neighbouring floats, equal rows give exactly 0, and
values near 1e-8 keep their digits. Arithmetic is in float32, but for the likeliest tokens, sums over blocks, and
normalisers, where it is in float64; what rounding these does to all probabilities of a row is undone by a factor.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.normaliser import NOTHING, exponentials, extremes, load, normaliser, scaled
from workers.vectorised import BLOCK, FAST, compiled, disorder, exp, f4, i4, log_of_rest

#: Of so many blocks of a row the exponentials are kept from the first sweep for the second: 0.9 MB for both rows.
_KEPT = 56

# Columns of what `compare_rows` writes.
(JS, KL_AB, KL_BA, TV, ENTROPY_A, ENTROPY_B, HELLINGER, TOP_A, TOP_B, BEST_A, BEST_B) = range(11)
(RANK_OF_B, RANK_OF_A, TOKEN_A, TOKEN_B, FIRST_RENYI) = range(11, 16)


@njit
def _shifts(zp, zq):  # type: ignore[no-untyped-def]
    """The normalisers in float32, what their rounding does to probabilities, and their difference."""
    lp, lq = f4(zp), f4(zq)
    return lp, lq, f4(math.exp(np.float64(lp) - zp)), f4(math.exp(np.float64(lq) - zq)), f4(zp - zq)


@njit
def _factor(reference, z):  # type: ignore[no-untyped-def]
    """What makes probabilities of exponentials beyond `reference`; 0 where float32 would be subnormal."""
    factor = math.exp(np.float64(reference) - z)
    return f4(factor if factor > 1.2e-38 else 0.0)


@njit(fastmath=FAST, error_model="numpy")
def _distances(a, b, scale, exp_x, exp_y, lp, lq, cp, cq, dz):  # type: ignore[no-untyped-def]
    """Sums of a block, whose probabilities are `cp * exp_x` and `cq * exp_y`."""
    s0, s1, s2, s3, s4, s5 = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
    for i in range(a.shape[0]):
        x, y = scaled(a[i], scale), scaled(b[i], scale)
        p, q = cp * exp_x[i], cq * exp_y[i]
        d = (y - x) + dz
        size = abs(d)
        both, least = p + q, min(p, q)
        # Near: series in d. Far: closed forms, which lose no digits there. Both are made: a branch does not vectorise.
        near = size < f4(0.25)
        c = d if near else f4(0)
        c2 = c * c
        series = both * c2 * (f4(1 / 8) + c2 * (f4(-1 / 64) + c2 * (f4(1 / 576) + c2 * f4(-17 / 92160))))
        closed = both * log_of_rest(least / (both + f4(1e-36))) - least * size
        s0 += series if near else closed
        # q - p - p d, of which q - p and p - q + q d are made.
        bend = p * c2 * (f4(1 / 2) + c * (f4(1 / 6) + c * (f4(1 / 24) + c * (f4(1 / 120) + c * f4(1 / 720)))))
        gap = p * c + bend if near else q - p
        s1 += bend if near else gap - p * d
        s2 += c * gap - bend if near else q * d - gap
        s3 += abs(gap)
        s4 += p * (x - lp)
        s5 += q * (y - lq)
    return s0, s1, s2, s3, s4, s5


@njit
def _add(sums, terms):  # type: ignore[no-untyped-def]
    for i in range(6):
        sums[i] += terms[i]


@njit
def _of_one(x, y, zp, zq, lp, lq):  # type: ignore[no-untyped-def]
    """What `_distances` sums, of one token in float64."""
    p, q = math.exp(x - zp), math.exp(y - zq)
    d = (y - x) + (zp - zq)
    if abs(d) < 1:
        up, down = math.expm1(d), math.expm1(-d)
        s0 = -p * math.log1p(0.5 * up) - q * math.log1p(0.5 * down)
        s1, s2, s3 = p * (up - d), q * (down + d), p * abs(up)
    else:
        log_m = math.log(0.5 * (p + q))
        s0, s1, s2, s3 = 0.0, q - p, p - q, abs(q - p)
        if p > 0:
            s0, s1 = s0 + p * (x - zp - log_m), s1 - p * d
        if q > 0:
            s0, s2 = s0 + q * (y - zq - log_m), s2 + q * d
    return s0, s1, s2, s3, p * (x - lp), q * (y - lq)


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
def _renyi(row_a, row_b, scale, zp, zq, alpha, x, y, power):  # type: ignore[no-untyped-def]
    """As `divergence.renyi`; of (B, A) where alpha is negative."""
    if alpha < 0:
        row_a, row_b, zp, zq, alpha = row_b, row_a, zq, zp, -alpha
    s = 1.0 - alpha
    lp, lq, cp, cq, dz = _shifts(zp, zq)
    highest, total, change = -math.inf, 0.0, 0.0
    for begin in range(0, row_a.shape[0], BLOCK):
        n = min(BLOCK, row_a.shape[0] - begin)
        load(row_a[begin : begin + n], scale, x[:n])
        load(row_b[begin : begin + n], scale, y[:n])
        change += _powers(x[:n], y[:n], lp, lq, cp, cq, dz, f4(s), power[:n])
        value = disorder(extremes(power[:n], None)[0])
        if value > highest:
            total *= math.exp(highest - np.float64(value))
            highest = np.float64(value)
        total += exponentials(power[:n], None, f4(highest), x)[2]
    if highest < -1e29:
        return math.inf
    log_sum = highest + math.log(total) + (np.float64(lp) - zp)
    if abs(log_sum) < 0.25:
        log_sum = math.log1p(change)
    return log_sum / -s


@njit
def _support(row_a, row_b, scale):  # type: ignore[no-untyped-def]
    """Whether A, and whether B, excludes a token the other can emit; and whether an entry is NaN or +inf."""
    a_lacks, b_lacks, wrong = False, False, False
    for i in range(row_a.shape[0]):
        x, y = scaled(row_a[i], scale), scaled(row_b[i], scale)
        a_lacks |= x == NOTHING and y != NOTHING
        b_lacks |= y == NOTHING and x != NOTHING
        wrong |= not (x < math.inf and y < math.inf)
    return a_lacks, b_lacks, wrong


@njit(fastmath=FAST)
def _rank(row, scale, place):  # type: ignore[no-untyped-def]
    """1 for the best; of equals the first is ahead."""
    value, ahead = scaled(row[place], scale), i4(1)
    for i in range(row.shape[0]):
        ahead += i4(scaled(row[i], scale) > value)
    for i in range(place):
        ahead += i4(scaled(row[i], scale) == value)
    return np.float64(ahead)


@compiled
def compare_rows(a, b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    if scale == f4(1):
        _compare_rows(a, b, size, None, token_ids, plan, orders, out)
    else:
        _compare_rows(a, b, size, scale, token_ids, plan, orders, out)


@njit
def _compare_rows(a, b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    x, y, power = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    distances, hellinger, rank_of_b, rank_of_a, normalised = plan[0], plan[1], plan[2], plan[3], plan[4]
    blocks = (size + BLOCK - 1) // BLOCK
    kept = min(blocks, _KEPT) if distances and not normalised else 0
    exp_x, exp_y = np.empty((kept + 1, BLOCK), np.float32), np.empty((kept + 1, BLOCK), np.float32)
    references_p, references_q = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    for t in range(a.shape[0]):
        row_a, row_b, found = a[t, :size], b[t, :size], out[t]
        top_p, best_p, zp, odd_p = normaliser(row_a, scale, not normalised, exp_x, references_p)
        top_q, best_q, zq, odd_q = normaliser(row_b, scale, not normalised, exp_y, references_q)
        a_lacks, b_lacks, wrong = False, False, False
        if odd_p or odd_q:
            a_lacks, b_lacks, wrong = _support(row_a, row_b, scale)
        if wrong or top_p <= NOTHING or top_q <= NOTHING:
            found[:] = math.nan
            continue
        lp, lq, cp, cq, dz = _shifts(zp, zq)
        rest_p, rest_q = zp - np.float64(lp), zq - np.float64(lq)
        found[BEST_A], found[BEST_B] = best_p, best_q
        found[TOP_A], found[TOP_B] = math.exp(np.float64(top_p) - zp), math.exp(np.float64(top_q) - zq)
        token_p = np.float64(scaled(row_a[token_ids[t]], scale))
        token_q = np.float64(scaled(row_b[token_ids[t]], scale))
        found[TOKEN_A] = token_p - zp if token_p > NOTHING else -math.inf
        found[TOKEN_B] = token_q - zq if token_q > NOTHING else -math.inf
        if distances:
            # The likeliest tokens apart, in float64: where they are nearly all, so is their error.
            sums = np.zeros(6)
            for i in range(1 if best_p == best_q else 2):
                place = best_q if i else best_p
                one, other = np.float64(scaled(row_a[place], scale)), np.float64(scaled(row_b[place], scale))
                _add(sums, _of_one(one, other, zp, zq, np.float64(lp), np.float64(lq)))
            for begin in range(0, size, BLOCK):
                block_a, block_b = row_a[begin : begin + BLOCK], row_b[begin : begin + BLOCK]
                k = begin // BLOCK
                exps_p, exps_q, factor_p, factor_q = exp_x[min(k, kept)], exp_y[min(k, kept)], cp, cq
                if k < kept:
                    factor_p, factor_q = _factor(references_p[k], zp), _factor(references_q[k], zq)
                else:
                    exponentials(block_a, scale, lp, exps_p)
                    exponentials(block_b, scale, lq, exps_q)
                for place in (best_p, best_q):
                    if begin <= place < begin + BLOCK:
                        exps_p[place - begin] = exps_q[place - begin] = 0
                _add(sums, _distances(block_a, block_b, scale, exps_p, exps_q, lp, lq, factor_p, factor_q, dz))
            js, kl_ab, kl_ba, tv, log_p, log_q = sums
            found[JS] = min(0.5 * js, math.log(2.0))  # rounding may carry disjoint rows a little beyond
            found[KL_AB] = math.inf if b_lacks else max(kl_ab, 0.0)
            found[KL_BA] = math.inf if a_lacks else max(kl_ba, 0.0)
            found[TV] = min(0.5 * tv, 1.0)
            found[ENTROPY_A], found[ENTROPY_B] = max(rest_p - log_p, 0.0), max(rest_q - log_q, 0.0)
        if hellinger:
            root_cp, root_cq, roots = f4(math.sqrt(cp)), f4(math.sqrt(cq)), 0.0
            for begin in range(0, size, BLOCK):
                n = min(BLOCK, size - begin)
                load(row_a[begin : begin + n], scale, x[:n])
                load(row_b[begin : begin + n], scale, y[:n])
                roots += _root_gaps(x[:n], y[:n], lp, lq, root_cp, root_cq, dz)
            found[HELLINGER] = min(math.sqrt(0.5 * roots), 1.0)
        if rank_of_b:
            found[RANK_OF_B] = _rank(row_a, scale, best_q)
        if rank_of_a:
            found[RANK_OF_A] = _rank(row_b, scale, best_p)
        for k in range(orders.shape[0]):
            alpha = orders[k]
            lacks = a_lacks if alpha < 0 else b_lacks
            if abs(alpha) == 1.0:
                found[FIRST_RENYI + k] = found[KL_BA] if alpha < 0 else found[KL_AB]
            elif abs(alpha) > 1.0 and lacks:
                found[FIRST_RENYI + k] = math.inf
            else:
                found[FIRST_RENYI + k] = _renyi(row_a, row_b, scale, zp, zq, alpha, x, y, power)
