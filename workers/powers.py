"""The loops of `workers.sweeps` for Hellinger's distance and Rényi's divergences."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.normaliser import NOTHING, exponentials, extremes, load
from workers.ratios import log_ratio, logp
from workers.vectorised import BLOCK, FAST, disorder, exp, f4, i4


@njit
def root_gap_of_one(la, lb, d):  # type: ignore[no-untyped-def]
    if abs(d) < 1:
        return math.exp(la) * math.expm1(0.5 * d) ** 2
    return (math.exp(0.5 * lb) - math.exp(0.5 * la)) ** 2


@njit
def change_of_one(la, lb, d, s):  # type: ignore[no-untyped-def]
    p, q = math.exp(la), math.exp(lb)
    if abs(d) < 1:
        return p * (math.expm1(s * d) - s * math.expm1(d))
    raised = math.exp(la + s * d) if p > 0 and q > 0 else 0.0
    return raised - p - s * (q - p)


@njit(fastmath=FAST)
def _root_gaps(x, y, scale, shift_p, shift_q, cp, cq, dz):  # type: ignore[no-untyped-def]
    """Sum of (sqrt q - sqrt p)^2."""
    total = f4(0)
    for i in range(x.shape[0]):
        d = f4(0.5) * log_ratio(x[i], y[i], scale, dz)
        root_p = cp * exp(f4(0.5) * logp(x[i], shift_p, scale))
        root_q = cq * exp(f4(0.5) * logp(y[i], shift_q, scale))
        near = f4(abs(d) < f4(0.125))
        c = d * near
        step = c * (f4(1) + c * (f4(0.5) + c * (f4(1 / 6) + c * (f4(1 / 24) + c * f4(1 / 120)))))
        gap = root_p * step + (f4(1) - near) * (root_q - root_p)
        total += gap * gap
    return total


@njit
def hellinger_of(row_a, row_b, scale, shift_p, shift_q, dz, likeliest, roots, x, y):  # type: ignore[no-untyped-def]
    """As `divergence.hellinger`; `roots` of the likeliest tokens are known."""
    cp, cq = f4(math.sqrt(shift_p[2])), f4(math.sqrt(shift_q[2]))
    for begin in range(0, row_a.shape[0], BLOCK):
        n = min(BLOCK, row_a.shape[0] - begin)
        load(row_a[begin : begin + n], x[:n])
        load(row_b[begin : begin + n], y[:n])
        for place in likeliest:
            if begin <= place < begin + n:
                x[place - begin] = y[place - begin] = NOTHING
        roots += _root_gaps(x[:n], y[:n], scale, shift_p, shift_q, cp, cq, dz)
    return min(math.sqrt(0.5 * roots), 1.0)


@njit(fastmath=FAST)
def _powers(x, y, scale, shift_p, shift_q, dz, s, left_out, power):  # type: ignore[no-untyped-def]
    """log of p^(1-s) q^s into `power`; sum of p (e^sd - 1 - s (e^d - 1)), all clamped where it is not used.

    Two places are left out of the sum.
    """
    total = f4(0)
    cp, cq = shift_p[2], shift_q[2]
    for i in range(x.shape[0]):
        la, lb = logp(x[i], shift_p, scale), logp(y[i], shift_q, scale)
        d = log_ratio(x[i], y[i], scale, dz)
        w = la + s * d if min(x[i], y[i]) > NOTHING else NOTHING  # a product with NOTHING would be reassociated
        power[i] = w
        p, q = cp * exp(la), cq * exp(lb)
        near = f4(abs(d) < f4(0.25)) * f4(abs(s * d) < f4(0.25))
        c, e = d * near, s * d * near
        rise = c * c * (f4(0.5) + c * (f4(1 / 6) + c * (f4(1 / 24) + c * (f4(1 / 120) + c * f4(1 / 720)))))
        risen = e * e * (f4(0.5) + e * (f4(1 / 6) + e * (f4(1 / 24) + e * (f4(1 / 120) + e * f4(1 / 720)))))
        raised = exp(min(w, f4(1)) - f4(1)) * (cp * f4(math.e))
        term = near * p * (risen - s * rise) + (f4(1) - near) * (raised - p - s * (q - p))
        total += term * f4(i4(i) != left_out[0]) * f4(i4(i) != left_out[1])
    return total


@njit
def renyi_of(row_a, row_b, scale, shift_p, shift_q, dz, alpha, likeliest, change, x, y, power):  # type: ignore[no-untyped-def]
    """As `divergence.renyi`; what the likeliest tokens change is known."""
    s = 1.0 - alpha
    highest, total = -math.inf, 0.0
    for begin in range(0, row_a.shape[0], BLOCK):
        n = min(BLOCK, row_a.shape[0] - begin)
        load(row_a[begin : begin + n], x[:n])
        load(row_b[begin : begin + n], y[:n])
        left_out = i4(likeliest[0] - begin), i4(likeliest[-1] - begin)
        change += _powers(x[:n], y[:n], scale, shift_p, shift_q, dz, f4(s), left_out, power[:n])
        value = disorder(extremes(power[:n])[0])
        if value > highest:
            total *= math.exp(highest - np.float64(value))
            highest = np.float64(value)
        total += exponentials(power[:n], None, f4(highest), x)[2]
    if highest < -1e29:
        return math.inf
    log_sum = highest + math.log(total) - shift_p[3]
    if abs(log_sum) < 0.25:
        log_sum = math.log1p(change)
    return log_sum / -s
