"""Log-probabilities of two rows, and the differences of these, in float32 with as many digits as the entries have."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from workers.normaliser import times, wide
from workers.vectorised import f4, fused


@njit
def spelled_out(scale):  # type: ignore[no-untyped-def]
    """The scale of a temperature, also of 1: for loops that need not be compiled for either."""
    return (f4(1), f4(0), 1.0) if scale is None else scale


@njit
def shift(top, z, scale):  # type: ignore[no-untyped-def]
    """Of a row with the largest entry `top` and its normaliser `z` beyond that: what `logp` subtracts before and after
    scaling, what the rounding of the latter does to probabilities, as a factor and in nats."""
    exact = np.float64(top) + z if scale is None else z
    rounded = f4(exact)
    return top, rounded, f4(math.exp(np.float64(rounded) - exact)), exact - np.float64(rounded)


@njit(inline="always")
def logp(entry, shift, scale):  # type: ignore[no-untyped-def]
    """Log-probability, but for the rounding that `shift` tells."""
    return entry - shift[1] if scale is None else times(entry - shift[0], scale) - shift[1]


@njit
def normalisers_apart(top_p, zp, top_q, zq, scale):  # type: ignore[no-untyped-def]
    """log Z_p - log Z_q, in float64."""
    return wide(scale) * (np.float64(top_p) - np.float64(top_q)) + (zp - zq)


@njit
def in_two(value):  # type: ignore[no-untyped-def]
    """A float64 as the sum of two float32."""
    return f4(value), f4(value - np.float64(f4(value)))


@njit(inline="always")
def log_ratio(x, y, scale, dz):  # type: ignore[no-untyped-def]
    """log q - log p, `dz` in two parts. Fused, since loops may reorder sums: in another order few digits are left."""
    if scale is None:
        return fused(fused(y - x, f4(2), f4(2) * dz[0]), f4(0.5), dz[1])  # a factor of 1 would become a plain sum
    return fused(y - x, scale[0], dz[0]) + fused(y - x, scale[1], dz[1])


@njit
def factor_of(reference, top, z, scale):  # type: ignore[no-untyped-def]
    """What makes probabilities of exponentials beyond `reference`, and what this lacks to its float64, as a factor.

    0 where float32 would be subnormal.
    """
    exact = math.exp(wide(scale) * (np.float64(reference) - np.float64(top)) - z)
    return (f4(exact), exact / np.float64(f4(exact))) if exact > 1.2e-38 else (f4(0.0), 1.0)
