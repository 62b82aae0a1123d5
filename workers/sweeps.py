"""The compiled loops of `workers.comparison`: both rows block by block, first for the normalisers, then the measures.

With d = (y - x) / T + (log Z_p - log Z_q), where y - x is exact for neighbouring floats, equal rows give exactly 0, and
values near 1e-8 keep their digits. Arithmetic is in float32, but for the likeliest tokens, sums over blocks, and
normalisers, where it is in float64; what rounding these does to all probabilities of a row is undone by factors.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.normaliser import NOTHING, beyond, normaliser, raw, wide
from workers.powers import change_of_one, hellinger_of, renyi_of, root_gap_of_one
from workers.ratios import factor_of, in_two, log_ratio, logp, normalisers_apart, shift, spelled_out
from workers.vectorised import BLOCK, FAST, compiled, f4, i4, log_of_rest

#: Of so many blocks of a row the exponentials are kept from the first sweep for the second: 0.9 MB for both rows.
_KEPT = 56

# Columns of what `compare_rows` writes.
(JS, KL_AB, KL_BA, TV, ENTROPY_A, ENTROPY_B, HELLINGER, TOP_A, TOP_B, BEST_A, BEST_B) = range(11)
(RANK_OF_B, RANK_OF_A, TOKEN_A, TOKEN_B, DELTA, FIRST_RENYI) = range(11, 17)


@njit(fastmath=FAST, error_model="numpy")
def _distances(a, b, scale, exp_x, exp_y, shift_p, shift_q, cp, cq, dz):  # type: ignore[no-untyped-def]
    """Sums of a block, whose probabilities are `cp * exp_x` and `cq * exp_y`."""
    s0, s1, s2, s3, s4, s5 = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
    for i in range(a.shape[0]):
        x, y = raw(a[i]), raw(b[i])
        p, q = cp * exp_x[i], cq * exp_y[i]
        d = log_ratio(x, y, scale, dz)
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
        s4 += p * logp(x, shift_p, scale)
        s5 += q * logp(y, shift_q, scale)
    return s0, s1, s2, s3, s4, s5


@njit
def _add(sums, terms, more_p, more_q):  # type: ignore[no-untyped-def]
    """What p or q are to be multiplied by multiplies the sums that are proportional to them, or nearly."""
    sums[0] += terms[0]
    sums[1] += terms[1] * more_p
    sums[2] += terms[2] * more_q
    sums[3] += terms[3]
    sums[4] += terms[4] * more_p
    sums[5] += terms[5] * more_q


@njit
def _of_one(la, lb, d, rest_p, rest_q):  # type: ignore[no-untyped-def]
    """What `_distances` sums, of one token in float64: its log-probabilities and their difference."""
    p, q = math.exp(la), math.exp(lb)
    if abs(d) < 1:
        up, down = math.expm1(d), math.expm1(-d)
        s0 = -p * math.log1p(0.5 * up) - q * math.log1p(0.5 * down)
        s1, s2, s3 = p * (up - d), q * (down + d), p * abs(up)
    else:
        log_m = math.log(0.5 * (p + q))
        s0, s1, s2, s3 = 0.0, q - p, p - q, abs(q - p)
        if p > 0:
            s0, s1 = s0 + p * (la - log_m), s1 - p * d
        if q > 0:
            s0, s2 = s0 + q * (lb - log_m), s2 + q * d
    return s0, s1, s2, s3, p * (la + rest_p), q * (lb + rest_q)


@njit
def _support(row_a, row_b):  # type: ignore[no-untyped-def]
    """Whether A, and whether B, excludes a token the other can emit; and whether an entry is NaN or +inf."""
    a_lacks, b_lacks, wrong = False, False, False
    for i in range(row_a.shape[0]):
        x, y = raw(row_a[i]), raw(row_b[i])
        a_lacks |= x == NOTHING and y != NOTHING
        b_lacks |= y == NOTHING and x != NOTHING
        wrong |= not (x < math.inf and y < math.inf)
    return a_lacks, b_lacks, wrong


@njit(fastmath=FAST)
def _rank(row, place):  # type: ignore[no-untyped-def]
    """1 for the best; of equals the first is ahead."""
    value, ahead = raw(row[place]), i4(1)
    for i in range(row.shape[0]):
        ahead += i4(raw(row[i]) > value)
    for i in range(place):
        ahead += i4(raw(row[i]) == value)
    return np.float64(ahead)


@compiled
def compare_rows(a, b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    """`scale` is 1 / temperature, float64."""
    if scale == 1.0:
        _compare_rows(a, b, size, None, token_ids, plan, orders, out)
    else:
        first, second = in_two(scale)
        _compare_rows(a, b, size, (first, second, scale), token_ids, plan, orders, out)


@njit
def _compare_rows(a, b, size, scale, token_ids, plan, orders, out):  # type: ignore[no-untyped-def]
    x, y, power = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    distances, hellinger, rank_of_b, rank_of_a, normalised = plan[0], plan[1], plan[2], plan[3], plan[4]
    blocks = (size + BLOCK - 1) // BLOCK
    kept = min(blocks, _KEPT) if distances and not normalised else 0
    exp_x, exp_y = np.empty((kept + 1, BLOCK), np.float32), np.empty((kept + 1, BLOCK), np.float32)
    references_p, references_q = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    factor, whole = wide(scale), spelled_out(scale)
    for t in range(a.shape[0]):
        row_a, row_b, found = a[t, :size], b[t, :size], out[t]
        top_p, best_p, zp, odd_p = normaliser(row_a, scale, not normalised, exp_x, references_p)
        top_q, best_q, zq, odd_q = normaliser(row_b, scale, not normalised, exp_y, references_q)
        a_lacks, b_lacks, wrong = False, False, False
        if odd_p or odd_q:
            a_lacks, b_lacks, wrong = _support(row_a, row_b)
        if wrong or top_p <= NOTHING or top_q <= NOTHING:
            found[:] = math.nan
            continue
        shift_p, shift_q = shift(top_p, zp, scale), shift(top_q, zq, scale)
        exact_dz = normalisers_apart(top_p, zp, top_q, zq, scale)
        dz = in_two(exact_dz)
        found[BEST_A], found[BEST_B] = best_p, best_q
        found[TOP_A], found[TOP_B] = math.exp(-zp), math.exp(-zq)
        token_p, token_q = raw(row_a[token_ids[t]]), raw(row_b[token_ids[t]])
        found[TOKEN_A] = factor * (np.float64(token_p) - top_p) - zp if token_p > NOTHING else -math.inf
        found[TOKEN_B] = factor * (np.float64(token_q) - top_q) - zq if token_q > NOTHING else -math.inf
        if token_p > NOTHING and token_q > NOTHING:
            found[DELTA] = factor * (np.float64(token_q) - token_p) + exact_dz
        else:  # 0 where neither model can emit it
            found[DELTA] = -math.inf if token_p > NOTHING else math.inf if token_q > NOTHING else 0.0
        # The likeliest tokens apart, in float64: where they are nearly all, so is their error.
        likeliest = np.array([best_p, best_q])[: 1 if best_p == best_q else 2]
        la, lb, apart = np.empty(likeliest.size), np.empty(likeliest.size), np.empty(likeliest.size)
        for i, place in enumerate(likeliest):
            of_a, of_b = np.float64(raw(row_a[place])), np.float64(raw(row_b[place]))
            la[i], lb[i] = factor * (of_a - top_p) - zp, factor * (of_b - top_q) - zq
            apart[i] = factor * (of_b - of_a) + exact_dz
        if distances:
            sums = np.zeros(6)
            for i in range(likeliest.size):
                _add(sums, _of_one(la[i], lb[i], apart[i], shift_p[3], shift_q[3]), 1.0, 1.0)
            for begin in range(0, size, BLOCK):
                block_a, block_b = row_a[begin : begin + BLOCK], row_b[begin : begin + BLOCK]
                k = begin // BLOCK
                exps_p, exps_q = exp_x[min(k, kept)], exp_y[min(k, kept)]
                reference_p, reference_q = references_p[k], references_q[k]
                if k >= kept:
                    reference_p, reference_q = references_p[-1], references_q[-1]
                    beyond(block_a, scale, reference_p, exps_p)
                    beyond(block_b, scale, reference_q, exps_q)
                cp, more_p = factor_of(reference_p, top_p, zp, scale)
                cq, more_q = factor_of(reference_q, top_q, zq, scale)
                for place in (best_p, best_q):
                    if begin <= place < begin + BLOCK:
                        exps_p[place - begin] = exps_q[place - begin] = 0
                terms = _distances(block_a, block_b, scale, exps_p, exps_q, shift_p, shift_q, cp, cq, dz)
                _add(sums, terms, more_p, more_q)
            js, kl_ab, kl_ba, tv, log_p, log_q = sums
            found[JS] = min(0.5 * js, math.log(2.0))  # rounding may carry disjoint rows a little beyond
            found[KL_AB] = math.inf if b_lacks else max(kl_ab, 0.0)
            found[KL_BA] = math.inf if a_lacks else max(kl_ba, 0.0)
            found[TV] = min(0.5 * tv, 1.0)
            found[ENTROPY_A], found[ENTROPY_B] = max(shift_p[3] - log_p, 0.0), max(shift_q[3] - log_q, 0.0)
        shift_p, shift_q = shift(top_p, zp, whole), shift(top_q, zq, whole)
        if hellinger:
            roots = 0.0
            for i in range(likeliest.size):
                roots += root_gap_of_one(la[i], lb[i], apart[i])
            found[HELLINGER] = hellinger_of(row_a, row_b, whole, shift_p, shift_q, dz, likeliest, roots, x, y)
        if rank_of_b:
            found[RANK_OF_B] = _rank(row_a, best_q)
        if rank_of_a:
            found[RANK_OF_A] = _rank(row_b, best_p)
        for k in range(orders.shape[0]):
            alpha, swapped = abs(orders[k]), orders[k] < 0
            if alpha == 1.0:
                found[FIRST_RENYI + k] = found[KL_BA] if swapped else found[KL_AB]
            elif alpha > 1.0 and (a_lacks if swapped else b_lacks):
                found[FIRST_RENYI + k] = math.inf
            else:
                change, s = 0.0, 1.0 - alpha
                for i in range(likeliest.size):
                    if swapped:
                        change += change_of_one(lb[i], la[i], -apart[i], s)
                    else:
                        change += change_of_one(la[i], lb[i], apart[i], s)
                if swapped:
                    back = -dz[0], -dz[1]
                    found[FIRST_RENYI + k] = renyi_of(
                        row_b, row_a, whole, shift_q, shift_p, back, alpha, likeliest, change, x, y, power
                    )
                else:
                    found[FIRST_RENYI + k] = renyi_of(
                        row_a, row_b, whole, shift_p, shift_q, dz, alpha, likeliest, change, x, y, power
                    )
