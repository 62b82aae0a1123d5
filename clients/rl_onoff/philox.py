"""Philox4x32-10: a random number that is a pure function of its counter and key.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11, section 4.3; the constants
and the known answers in the tests are those of its reference implementation (Random123).

One implementation for numpy and torch (CPU and CUDA): 64-bit integers hold 32-bit words, products wrap modulo 2**64 and
their halves are masked out, so signed and unsigned arithmetic give the same words everywhere.
"""

from __future__ import annotations

from typing import Any, Final

_M0: Final = 0xD2511F53
_M1: Final = 0xCD9E8D57
_W0: Final = 0x9E3779B9
_W1: Final = 0xBB67AE85
_MASK: Final = 0xFFFFFFFF

Word = Any  # an int, or an int64 array of any array library


def philox4x32(c0: Word, c1: Word, c2: Word, c3: Word, key: int) -> tuple[Word, Word, Word, Word]:
    """Ten rounds over the counter words under a 64-bit key; four 32-bit words in [0, 2**32).

    The words may be Python integers or int64 arrays that broadcast; the result has the broadcast shape.
    """
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


# The second counter word's stream: who asks for the number. Tokens and decisions never share noise.
STREAM_TOKENS: Final = 0
STREAM_POLICY: Final = 1
STREAM_SEEDS: Final = 2


def uniform(seed: int, position: int, stream: int) -> float:
    """One number in (0, 1), a pure function of its arguments."""
    word = philox4x32(0, position, stream, 0, seed)[0]
    return (float(word) + 0.5) * 2.0**-32


def derive_seed(seed: int, *path: int) -> int:
    """A seed for a part of a request (prompt, sample): `seed` itself for an all-zero path, else independent of it.

    Below 2**53, so that it survives JSON in every language.
    """
    if not any(path):
        return seed
    for depth, index in enumerate(path):
        w0, w1, _, _ = philox4x32(index, depth, STREAM_SEEDS, 0, seed)
        seed = (int(w0) << 32 | int(w1)) & ((1 << 53) - 1)
    return seed
