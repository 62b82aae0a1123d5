"""The inner loops of judging on a CPU, compiled: a measure or a draw per row in one pass over it.

They compute what `rl_onoff.divergence` and `workers.sampling.choose` define, without the dozens of temporaries of
array code; the tests hold them to those. Every row is computed alone, so results do not depend on how many are judged
together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from workers.vectorised import BLOCK, FAST, compiled, exp, f4, log_of_share

_u = np.uint64


@njit(fastmath=FAST)
def _js_block(p, q):  # type: ignore[no-untyped-def]
    total = f4(0.0)
    for i in range(p.shape[0]):
        # Below -200 a probability is 0 in float32; the clamp keeps -inf out of the arithmetic.
        a = max(p[i], f4(-200.0))
        b = max(q[i], f4(-200.0))
        d = b - a
        size = abs(d)
        ratio = exp(-size)
        most = exp(a if d < f4(0) else b)
        least = most * ratio
        both = most + least
        # Near: the series of twice JS in d. Far: p log(p/m) + q log(q/m). Both are made: a branch does not vectorise.
        near = size < f4(0.25)
        c = d if near else f4(0)
        c2 = c * c
        series = both * (c2 * (f4(1 / 8) + c2 * (f4(-1 / 64) + c2 * (f4(1 / 576) + c2 * f4(-17 / 92160)))))
        closed = both * log_of_share(ratio) - least * size
        total += series if near else closed
    return total


@compiled
def js_rows(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Jensen-Shannon divergence in nats of rows of log-probabilities, `[n, V]` float32 twice -> `[n]` float64."""
    n, size = p.shape
    out = np.empty(n)
    for t in range(n):
        total = 0.0
        for begin in range(0, size, BLOCK):
            total += _js_block(p[t, begin : begin + BLOCK], q[t, begin : begin + BLOCK])
        out[t] = min(0.5 * total, math.log(2.0))  # rows that sum to a little over 1 may exceed it
    return out


@njit(fastmath=FAST)
def _entropy_block(p):  # type: ignore[no-untyped-def]
    total = f4(0.0)
    for i in range(p.shape[0]):
        a = max(p[i], f4(-200.0))
        total += exp(a) * a
    return total


@compiled
def entropy_rows(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Shannon entropy in nats of rows of log-probabilities, `[n, V]` float32 -> `[n]` float64."""
    n, size = p.shape
    out = np.empty(n)
    for t in range(n):
        total = 0.0
        for begin in range(0, size, BLOCK):
            total += _entropy_block(p[t, begin : begin + BLOCK])
        out[t] = 0.0 - total
    return out


@compiled
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


@compiled
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
