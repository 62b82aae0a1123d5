"""Rows as they are stored, block by block: their entries as float32, and their normalisers."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.vectorised import BLOCK, FAST, disorder, entry, exp, exp_of_any, f4, fused, i4, order

#: Stands for -inf and for anything below, so that no arithmetic meets an infinity.
NOTHING = f4(-1e30)

#: Of rows whose largest entry lies between these exponentials are of entries as they are, which no subtraction rounds.
_LOW, _HIGH = f4(-20), f4(60)
#: How far above the largest entry so far those of others have their reference, so that few blocks are done twice.
_HEADROOM = f4(8)


@njit(inline="always", fastmath=FAST)
def raw(stored):  # type: ignore[no-untyped-def]
    """An entry as float32, -inf and what is below `NOTHING` as that; NaN stays."""
    value = entry(stored)
    return NOTHING if value < NOTHING else value


@njit(inline="always", fastmath=FAST)
def times(difference, scale):  # type: ignore[no-untyped-def]
    """A difference of entries at the temperature of `scale`, 1 where that is None.

    Entries themselves are never scaled: rounding the products would leave few digits of the difference of two that are
    close. The second part of the scale is what the first lacks: it would make a temperature of its own.
    """
    return difference if scale is None else fused(difference, scale[0], difference * scale[1])


@njit(inline="always")
def wide(scale):  # type: ignore[no-untyped-def]
    """The scale in float64."""
    return 1.0 if scale is None else scale[2]


@njit(fastmath=FAST)
def load(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.shape[0]):
        target[i] = raw(source[i])


@njit(fastmath=FAST)
def extremes(source):  # type: ignore[no-untyped-def]
    """The largest and the smallest entry as `order` has them; NaN lies beyond one or the other."""
    highest, lowest = i4(-(2**31)), i4(2**31 - 1)
    for i in range(source.shape[0]):
        key = order(raw(source[i]))
        highest, lowest = i4(max(highest, key)), i4(min(lowest, key))
    return highest, lowest


@njit(fastmath=FAST)
def exponentials(source, scale, beyond, found):  # type: ignore[no-untyped-def]
    """e**(entry - beyond), at the temperature, into `found`, their sum, and `extremes`; `beyond` None for e**entry."""
    highest, lowest, total = i4(-(2**31)), i4(2**31 - 1), f4(0)
    for i in range(source.shape[0]):
        value = entry(source[i]) if scale is None else raw(source[i])
        key = order(value)
        highest, lowest = i4(max(highest, key)), i4(min(lowest, key))
        e = exp_of_any(value) if beyond is None else exp(times(value - beyond, scale))
        found[i] = e
        total += e
    return highest, lowest, total


@njit
def beyond(source, scale, reference, found):  # type: ignore[no-untyped-def]
    """`exponentials` beyond a reference, which is 0 for rows whose entries need none."""
    if scale is None and reference == 0:
        return exponentials(source, scale, None, found)
    return exponentials(source, scale, reference, found)


@njit(fastmath=FAST)
def _first(source, value):  # type: ignore[no-untyped-def]
    """Where `value` is first; the last place if nowhere."""
    found = i4(source.shape[0] - 1)
    for i in range(source.shape[0]):
        found = i4(min(found, i4(i) if raw(source[i]) == value else i4(BLOCK)))
    return found


@njit(fastmath=FAST)
def _sum(x):  # type: ignore[no-untyped-def]
    total = f4(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total


@njit
def normaliser(row, scale, sums, kept, references):  # type: ignore[no-untyped-def]
    """Largest entry, its first place, log of the sum of e**(entry - largest), and whether there are entries that need a
    closer look. Without `sums` the row is normalised: its sum of e**entry is 1.

    Exponentials are taken beyond 0, or a value a little above the largest entry so far, so that one loop finds both.
    Those of block k stay in `kept[k]`, beyond `references[k]`; the last of `kept` is overwritten by all that find no
    place.
    The largest entry's is added in float64: where it is nearly all, log-probabilities hang on the little that is not.
    """
    top, place, total, odd = i4(-(2**31)), 0, 0.0, False
    reference, most_for_it, factor = f4(-math.inf), f4(-math.inf), wide(scale)
    least, most = order(NOTHING), order(f4(math.inf))
    for begin in range(0, row.shape[0], BLOCK):
        k = begin // BLOCK
        block = row[begin : begin + BLOCK]
        exps, subtotal = kept[min(k, kept.shape[0] - 1), : block.shape[0]], 0.0
        if sums and begin > 0:
            highest, lowest, subtotal = beyond(block, scale, reference, exps)
        else:
            highest, lowest = extremes(block)
        odd |= highest >= most or lowest <= least
        value = disorder(highest)
        if sums and not value <= most_for_it:
            plain = scale is None and _LOW < value < _HIGH
            raised = f4(0) if plain else f4(value + _HEADROOM / factor)
            most_for_it = _HIGH if plain else raised
            total *= math.exp(factor * (np.float64(reference) - np.float64(raised)))
            reference = raised
            subtotal = beyond(block, scale, reference, exps)[2]
        if highest > top:
            first = _first(block, value)
            top, place = highest, begin + first
            if sums:
                exact = math.exp(factor * (np.float64(value) - np.float64(reference)))
                exps[first] = 0
                subtotal = _sum(exps) + exact
                exps[first] = exact
        total += subtotal
        references[k] = reference if sums else f4(0)
    largest = disorder(top)
    if sums:
        return largest, place, factor * (np.float64(reference) - np.float64(largest)) + math.log(total), odd
    return largest, place, -factor * np.float64(largest), odd
