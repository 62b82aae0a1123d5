"""What compiled loops over a vocabulary are made of, in forms that LLVM vectorises: no library calls, no branches.

`exp` is a polynomial on float32, accurate to about one unit in the last place. Loops accumulate
in float32 within a block of `BLOCK` entries and in float64 across blocks.
"""

from __future__ import annotations

from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic, overload

BLOCK: Final = 2048
#: Sums may be reordered; NaN and infinities keep their meaning.
FAST: Final = {"contract", "reassoc", "nsz", "arcp"}

f4 = np.float32
i4 = np.int32


def use_whole_vectors() -> None:
    """Let loops use the 512 bits of AVX-512, of which LLVM uses half unless told: a third less time for all of them.

    Called before anything is compiled. What the operator set for numba stays.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and not config.CPU_FEATURES:
        config.CPU_FEATURES = f"{features.flatten()},-prefer-256-bit"


use_whole_vectors()


def compiled(function: Any) -> Any:
    """Compiled once a machine where a cache can be written, once a process where not (a read-only image, no home).

    The cache knows the function's own file alone: after a change to a loop it calls in another, touch that file.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@intrinsic
def as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 of an int32's bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def as_bits(typing_context: Any, value: Any) -> Any:
    """A float32's bits as an int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def fused(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


def entry(stored: Any) -> Any:
    """The float32 of what a row stores: a float32, a bfloat16's bits as uint16, or a float16's as int16."""
    raise NotImplementedError("for compiled code alone")


@overload(entry, jit_options={"fastmath": FAST})
def _entry(stored):  # type: ignore[no-untyped-def]
    def float16(stored):  # type: ignore[no-untyped-def]
        bits = i4(stored)
        # A product rebases the exponent, exactly for subnormals too; infinity and NaN need a second one.
        value = as_float((bits & i4(0x7FFF)) << i4(13)) * f4(2.0**112)
        value = value * f4(2.0**112) if value >= f4(65536.0) else value
        return as_float(as_bits(value) | ((bits & i4(0x8000)) << i4(16)))

    if stored == types.int16:
        return float16
    if stored == types.uint16:
        return lambda stored: as_float(i4(stored) << i4(16))
    return lambda stored: f4(stored)


@njit(inline="always", fastmath=FAST)
def exp(x):  # type: ignore[no-untyped-def]
    """e**x for x <= 0; 0 below -87.7, where float32 would be subnormal: the exponent's bits are all zero then."""
    x = max(x, f4(-88.0))
    return _exp(x, i4(x * f4(1.44269504) - f4(0.5)))


@njit(inline="always", fastmath=FAST)
def exp_of_any(x):  # type: ignore[no-untyped-def]
    """The same for x < 88."""
    x = max(x, f4(-88.0))
    return _exp(x, i4(i4(x * f4(1.44269504) - f4(128.5)) + i4(128)))  # rounds to the nearest below 0 alone


@njit(inline="always", fastmath=FAST)
def _exp(x, n):  # type: ignore[no-untyped-def]
    """With n the integer next to x / log(2)."""
    r = x - f4(n) * f4(0.693147182)  # one rounding; the constant's own error counts where e**x is next to nothing
    # (e**r - 1 - r) / r**2 at Chebyshev's points of +-log(2)/2: e**r within 1e-8.
    p = f4(1.392632606e-3)
    p = p * r + f4(8.363292553e-3)
    p = p * r + f4(4.166655242e-2)
    p = p * r + f4(1.666657627e-1)
    p = p * r + f4(5.0e-1)
    return (p * r * r + r + f4(1.0)) * as_float((n + i4(127)) << i4(23))


@njit(inline="always", fastmath=FAST)
def log_of_share(u):  # type: ignore[no-untyped-def]
    """log(2 / (1 + u)) for u in [0, e^-0.25], by interpolation at Chebyshev's points: within 7e-9."""
    y = f4(1.041012440e-02)
    y = y * u + f4(-4.889352155e-02)
    y = y * u + f4(1.120781079e-01)
    y = y * u + f4(-1.789629031e-01)
    y = y * u + f4(2.449021292e-01)
    y = y * u + f4(-3.326111751e-01)
    y = y * u + f4(4.999473996e-01)
    y = y * u + f4(-9.999984960e-01)
    return y * u + f4(6.931471734e-01)


@njit(inline="always", fastmath=FAST)
def log_of_rest(v):  # type: ignore[no-untyped-def]
    """log(2 (1 - v)) for v in [0, 1 / (1 + e^0.25)], as above, of the floats nearby those that do best: within 1e-8."""
    y = f4(-1.043458343)
    y = y * v + f4(8.996640444e-01)
    y = y * v + f4(-7.071773410e-01)
    y = y * v + f4(-4.689975828e-02)
    y = y * v + f4(-2.746317089e-01)
    y = y * v + f4(-3.311519027e-01)
    y = y * v + f4(-5.000952482e-01)
    y = y * v + f4(-9.999985099e-01)
    return y * v + f4(6.931471825e-01)


@njit(inline="always")
def order(value):  # type: ignore[no-untyped-def]
    """An int32 that orders as the float32 does: an integer maximum vectorises, a float one not."""
    bits = as_bits(value)
    return i4(bits ^ i4(i4(bits >> i4(31)) & i4(0x7FFFFFFF)))  # casts: numba's integers are of 64 bits else


@njit(inline="always")
def disorder(key):  # type: ignore[no-untyped-def]
    """The float32 of an `order`."""
    return as_float(key ^ ((key >> i4(31)) & i4(0x7FFFFFFF)))
