"""Rows as they are stored, block by block: their entries as float32, and their normalisers."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.vectorised import BLOCK, FAST, disorder, entry, exp, f4, i4, order

#: Stands for -inf and for anything below, so that no arithmetic meets an infinity.
NOTHING = f4(-1e30)

#: How far above the largest entry so far exponentials have their reference, so that few blocks are done twice.
_HEADROOM = f4(8)


@njit(inline="always", fastmath=FAST)
def _times(stored, scale):  # type: ignore[no-untyped-def]
    """An entry as float32, times `scale` if that is not None."""
    return entry(stored) if scale is None else entry(stored) * scale


@njit(inline="always", fastmath=FAST)
def scaled(stored, scale):  # type: ignore[no-untyped-def]
    """The same, -inf and what is below as `NOTHING`; NaN stays."""
    value = _times(stored, scale)
    return NOTHING if value < NOTHING else value


@njit(fastmath=FAST)
def load(source, scale, target):  # type: ignore[no-untyped-def]
    for i in range(source.shape[0]):
        target[i] = scaled(source[i], scale)


@njit(fastmath=FAST)
def extremes(source, scale):  # type: ignore[no-untyped-def]
    """The largest and the smallest entry as `order` has them; NaN lies beyond one or the other."""
    highest, lowest = i4(-(2**31)), i4(2**31 - 1)
    for i in range(source.shape[0]):
        key = order(scaled(source[i], scale))
        highest, lowest = i4(max(highest, key)), i4(min(lowest, key))
    return highest, lowest


@njit(fastmath=FAST)
def exponentials(source, scale, beyond, found):  # type: ignore[no-untyped-def]
    """e**(entry - beyond) into `found`, their sum, and `extremes`."""
    highest, lowest, total = i4(-(2**31)), i4(2**31 - 1), f4(0)
    for i in range(source.shape[0]):
        value = _times(source[i], scale)
        key = order(value)
        highest, lowest = i4(max(highest, key)), i4(min(lowest, key))
        e = exp(value - beyond)
        found[i] = e
        total += e
    return highest, lowest, total


@njit(fastmath=FAST)
def _first(source, scale, value):  # type: ignore[no-untyped-def]
    """Where `value` is first; the last place if nowhere."""
    found = i4(source.shape[0] - 1)
    for i in range(source.shape[0]):
        found = i4(min(found, i4(i) if scaled(source[i], scale) == value else i4(BLOCK)))
    return found


@njit(fastmath=FAST)
def _sum(x):  # type: ignore[no-untyped-def]
    total = f4(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total


@njit
def normaliser(row, scale, sums, kept, references):  # type: ignore[no-untyped-def]
    """Largest entry, its first place, log Z, and whether there are entries that need a closer look.

    Exponentials are taken beyond a value a little above the largest entry so far, so that one loop finds both. Those
    of block k stay in `kept[k]`, beyond `references[k]`; the last of `kept` is overwritten by all that find no place.
    The largest entry's is added in float64: where it is nearly all, log-probabilities hang on the little that is not.
    """
    top, place, total, odd = i4(-(2**31)), 0, 0.0, False
    reference = f4(-math.inf)
    least, most = order(NOTHING), order(f4(math.inf))
    for begin in range(0, row.shape[0], BLOCK):
        k = begin // BLOCK
        block = row[begin : begin + BLOCK]
        exps, subtotal = kept[min(k, kept.shape[0] - 1), : block.shape[0]], 0.0
        if sums and begin > 0:
            highest, lowest, subtotal = exponentials(block, scale, reference, exps)
        else:
            highest, lowest = extremes(block, scale)
        odd |= highest >= most or lowest <= least
        value = disorder(highest)
        if sums and not value <= reference:
            raised = value + _HEADROOM
            total *= math.exp(np.float64(reference) - np.float64(raised))
            reference = raised
            subtotal = exponentials(block, scale, reference, exps)[2]
        if highest > top:
            first = _first(block, scale, value)
            top, place = highest, begin + first
            if sums:
                exact = math.exp(np.float64(value) - np.float64(reference))
                exps[first] = 0
                subtotal = _sum(exps) + exact
                exps[first] = exact
        if sums:
            total += subtotal
            references[k] = reference
    return disorder(top), place, (np.float64(reference) + math.log(total) if sums else 0.0), odd
