"""The inner loops of judging on a CPU, compiled: a measure or a draw per row in one pass over it.

They compute what `rl_onoff.divergence` and `workers.sampling.choose` define, without the dozens of temporaries of
array code; the tests hold them to those. Every row is computed alone, so results do not depend on how many are judged
together.

LLVM vectorises these loops only without library calls: `exp` and `log1p` are polynomials on float32 (Cephes, Moshier),
accurate to about one unit in the last place, and accumulate in float64 every `_BLOCK` entries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic


def _compiled(function: Any) -> Any:
    """Compiled once a machine where a cache can be written, once a process where not (a read-only image, no home)."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


_f = np.float32
_i = np.int32
_u = np.uint64
_BLOCK = 2048
_LN2 = _f(0.6931471805599453)


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def _as_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@njit(inline="always", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _exp(x):  # type: ignore[no-untyped-def]
    """e**x for x <= 0; 0 below -87, where float32 would be subnormal."""
    live = _f(x > _f(-87.0))
    x = max(x, _f(-87.0))
    n = _i(x * _f(1.44269504) - _f(0.5))
    r = x - _f(n) * _f(0.693359375)
    r = r + _f(n) * _f(2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    return live * ((p * r * r + r + _f(1.0)) * _as_float((n + _i(127)) << _i(23)))


@njit(inline="always", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _log1p(u):  # type: ignore[no-untyped-def]
    """log(1 + u) for u in [0, 1]."""
    x = _f(1.0) + u
    bits = _as_bits(x)
    exponent = _f((bits >> _i(23)) - _i(127))
    m = _as_float((bits & _i(0x7FFFFF)) | _i(0x3F800000))
    big = _f(m > _f(1.41421356))
    m = m * (_f(1.0) - _f(0.5) * big)
    exponent = exponent + big
    f = m - _f(1.0)
    z = f * f
    p = _f(7.0376836292e-2)
    p = p * f - _f(1.1514610310e-1)
    p = p * f + _f(1.1676998740e-1)
    p = p * f - _f(1.2420140846e-1)
    p = p * f + _f(1.4249322787e-1)
    p = p * f - _f(1.6668057665e-1)
    p = p * f + _f(2.0000714765e-1)
    p = p * f - _f(2.4999993993e-1)
    p = p * f + _f(3.3333331174e-1)
    y = f * z * p + exponent * _f(-2.12194440e-4) - _f(0.5) * z
    return f + y + exponent * _f(0.693359375)


@njit(fastmath={"contract", "reassoc", "nsz", "arcp"})
def _js_block(p, q):  # type: ignore[no-untyped-def]
    total = _f(0.0)
    for i in range(p.shape[0]):
        # Below -200 a probability is 0 in float32; the clamp keeps -inf out of the arithmetic.
        a = max(p[i], _f(-200.0))
        b = max(q[i], _f(-200.0))
        pa, pb = _exp(a), _exp(b)
        d = b - a
        size = abs(d)
        near = _f(size < _f(0.25))
        # Near: mean times f(tanh(d/2)) by its series. Far: p log(p/m) + q log(q/m). A blend vectorises, a branch not.
        half = _f(0.5) * d * near
        square = half * half
        tanh = half * (_f(1) + square * (_f(-1 / 3) + square * (_f(2 / 15) + square * _f(-17 / 315))))
        t2 = tanh * tanh
        series = (pa + pb) * t2 * (_f(0.5) + t2 * (_f(1 / 12) + t2 * (_f(1 / 30) + t2 * _f(1 / 56))))
        larger = _LN2 - _log1p(_exp(-size))  # log of the larger of p, q over m; the smaller's is `size` less
        far = pa * (larger - _f(0.5) * (size + d)) + pb * (larger - _f(0.5) * (size - d))
        total += series + (_f(1.0) - near) * far
    return total


@_compiled
def js_rows(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Jensen-Shannon divergence in nats of rows of log-probabilities, `[n, V]` float32 twice -> `[n]` float64."""
    n, size = p.shape
    out = np.empty(n)
    for t in range(n):
        total = 0.0
        for begin in range(0, size, _BLOCK):
            total += _js_block(p[t, begin : begin + _BLOCK], q[t, begin : begin + _BLOCK])
        out[t] = min(0.5 * total, math.log(2.0))  # rows that sum to a little over 1 may exceed it
    return out


@njit(fastmath={"contract", "reassoc", "nsz", "arcp"})
def _entropy_block(p):  # type: ignore[no-untyped-def]
    total = _f(0.0)
    for i in range(p.shape[0]):
        a = max(p[i], _f(-200.0))
        total += _exp(a) * a
    return total


@_compiled
def entropy_rows(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Shannon entropy in nats of rows of log-probabilities, `[n, V]` float32 -> `[n]` float64."""
    n, size = p.shape
    out = np.empty(n)
    for t in range(n):
        total = 0.0
        for begin in range(0, size, _BLOCK):
            total += _entropy_block(p[t, begin : begin + _BLOCK])
        out[t] = 0.0 - total
    return out


@_compiled
def rank_rows(p: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The rank of one token per row, 1 for the best, of equals the lower id: `[n, V]`, `[n]` -> `[n]` float64."""
    n, size = p.shape
    out = np.empty(n)
    for t in range(n):
        token, value = token_ids[t], p[t, token_ids[t]]
        ahead = 0
        for i in range(token):
            ahead += p[t, i] >= value
        for i in range(token + 1, size):
            ahead += p[t, i] > value
        out[t] = 1.0 + ahead
    return out


@njit
def _philox_block(words, begin, position, key0, key1):  # type: ignore[no-untyped-def]
    """Words of tokens 4*begin..., as `rl_onoff.philox` gives them; `words` has shape [4, m]."""
    mask = _u(0xFFFFFFFF)
    c0, c1, c2, c3 = words[0], words[1], words[2], words[3]
    for j in range(c0.shape[0]):
        c0[j], c1[j], c2[j], c3[j] = _u(begin + j) & mask, position, _u(0), _u(0)
    for _ in range(10):  # outside, so that the inner loop is straight and vectorises
        for j in range(c0.shape[0]):
            p0 = _u(0xD2511F53) * (c0[j] & mask)
            p1 = _u(0xCD9E8D57) * (c2[j] & mask)
            c0[j] = (p1 >> _u(32)) ^ c1[j] ^ key0
            c1[j] = p1 & mask
            c2[j] = (p0 >> _u(32)) ^ c3[j] ^ key1
            c3[j] = p0 & mask
        key0 = (key0 + _u(0x9E3779B9)) & mask
        key1 = (key1 + _u(0xBB67AE85)) & mask


@njit(inline="always")
def _gumbel(word):  # type: ignore[no-untyped-def]
    return -math.log(-math.log((np.float64(word) + 0.5) * 2.0**-32))


@njit(inline="always")
def _least_word(score, to_beat):  # type: ignore[no-untyped-def]
    """Words below this leave `score` short of `to_beat`; a little generous."""
    return _u(max(0.0, 4294967295.0 - math.exp(min(score - to_beat, 0.0)) * 4294970000.0))


_PHILOX_BLOCK = 256
#: No noise exceeds -log(-log(1 - 2**-33)).
_MOST_NOISE = 22.8739


@_compiled
def draw_rows(
    rows: npt.NDArray[Any], temperature: float, seed: int, positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """argmax over v of (row[v] - max(row)) / temperature + noise[v], for rows `[n, V]`; the lowest id of equals.

    And by how much the winner leads the second best, `[n]`. Noise as `workers.sampling.gumbel`. Since -log(-log u) <=
    -log(1 - u), a token can score more than s only if 1 - u <= exp(score - s): a comparison of random words that
    spares nearly every logarithm.
    """
    n, size = rows.shape
    out, gaps = np.empty(n, np.int64), np.empty(n, np.float64)
    words = np.empty((4, _PHILOX_BLOCK), np.uint64)
    key0, key1 = _u(seed) & _u(0xFFFFFFFF), _u(seed) >> _u(32)
    for t in range(n):
        row, position = rows[t], _u(positions[t])
        top = row[0]
        for i in range(1, size):
            top = max(top, row[i])
        ceiling = np.float64(top)  # `float` would keep float32
        best, second, chosen = -math.inf, -math.inf, -1
        for begin in range(0, (size + 3) // 4, _PHILOX_BLOCK):
            first, last = 4 * begin, min(4 * (begin + _PHILOX_BLOCK), size)
            highest = row[first]
            for i in range(first + 1, last):
                highest = max(highest, row[i])
            lead = (np.float64(highest) - ceiling) / temperature
            if lead + _MOST_NOISE < second or lead == -math.inf:
                continue
            _philox_block(words, begin, position, key0, key1)
            floor = _least_word(lead, second)
            for j in range(last - first):
                word = words[j & 3, j >> 2]
                if word < floor:
                    continue
                value = (np.float64(row[first + j]) - ceiling) / temperature + _gumbel(word)
                if value > best:
                    best, second, chosen = value, best, first + j
                    floor = _least_word(lead, second)
                elif value > second:
                    second = value
                    floor = _least_word(lead, second)
        out[t], gaps[t] = chosen, best - second
    return out, gaps
