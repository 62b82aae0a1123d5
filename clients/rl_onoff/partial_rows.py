"""What is certain of a row of which some tokens' log-probabilities are listed, each as exact as it was stored.

A listed value is not the row's: it is off by up to its precision (`error`), and what is less likely than a float64 can
tell is not therefore excluded. So probabilities are intervals, those of the tokens that are not listed as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.integer]
Array = npt.NDArray[np.float64]

#: How far listed log-probabilities may be from the row's: so many nats, or what arithmetic in this dtype leaves.
Precision = float | Literal["float64", "float32", "float16", "bfloat16"]

#: What a softmax in float32 is off by, in nats: its sum over 152k columns was seen to move a whole row by 1.4e-5.
FLOAT32_SOFTMAX: Final = 2e-5
#: More than float64 arithmetic is off by here: in a log-probability, a sum of probabilities, a sum's terms.
DOUBLE: Final = 1e-14
#: The least float64 of full precision, exp(-708.4): a probability below it is somewhere in [0, TINY].
TINY: Final = float(np.finfo(np.float64).tiny)
#: Half a unit in the last place, relative.
_ROUNDOFF: Final = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def error(logprobs: Floats, precision: Precision | None = None) -> Array:
    """How far each log-probability may be from the row's, in nats: `[n]` -> `[n]`.

    By default as the array's dtype has it, but float32 at least: that is what services compute in, and JSON, which has
    no dtype, is read as float64. Of float32 and less it is the rounding to this dtype and `FLOAT32_SOFTMAX`.
    """
    size = np.abs(np.asarray(logprobs, dtype=np.float64))
    size = np.where(np.isfinite(size), size, 0.0)
    own: Array = DOUBLE + _ROUNDOFF["float64"] * size
    if isinstance(precision, int | float):
        if not 0 <= precision < math.inf:
            raise ValueError(f"a precision is a number of nats, 0 or more, not {precision}")
        return own + precision
    kind = precision or np.asarray(logprobs).dtype.name
    if precision is None and kind != "float16":
        kind = "float32"
    if kind not in _ROUNDOFF:
        raise ValueError(f"no precision is known of {kind!r}: there are {', '.join(_ROUNDOFF)}, or nats")
    if kind == "float64":
        return own
    stored = 0.0 if kind == "float32" else _ROUNDOFF[kind]
    return own + FLOAT32_SOFTMAX + (_ROUNDOFF["float32"] + stored) * size


@dataclass(frozen=True, slots=True)
class Part:
    """Probabilities `[n]` that lie in [least, most]. `most` is 0 of excluded tokens alone, else at least `TINY`."""

    least: Array
    most: Array

    @classmethod
    def of(cls, logprobs: Floats, precision: Precision | None) -> Part:
        """From log-probabilities `[n]` of one row. Raises ValueError for what is no part of a row.

        -inf is of a token the row excludes; in float16 it may be of any below -65504, as masks of -1e5 are.
        """
        values = np.asarray(logprobs, dtype=np.float64)
        if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
            raise ValueError("expected the log-probabilities of some tokens of one row, [n], without NaN")
        off = error(logprobs, precision)
        least, most = np.exp(values - off), np.exp(np.minimum(values + off, 0.0))
        excluded = np.isneginf(values) & ("float16" not in (precision, np.asarray(logprobs).dtype.name))
        part = cls(np.where(least < TINY, 0.0, least), np.where(excluded, 0.0, np.maximum(most, TINY)))
        if part.least.max() > 1 or part.least.sum() > 1 + DOUBLE:
            raise ValueError("a row's probabilities sum to more than 1, by more than the precision allows")
        return part

    def at(self, places: Places) -> Part:
        """Some of them."""
        return Part(self.least[places], self.most[places])


class PartialRow:
    """A row's listed ids: those at `shared`, in the other's order, which `both` rows list, and its `own`.

    `rest` is the mass of what it does not list, `cap` the most that one of these may have.
    """

    def __init__(self, listed: Part, shared: Places) -> None:
        self.both = listed.at(shared)
        self.own = Part(np.delete(listed.least, shared), np.delete(listed.most, shared))
        least, most = (max(0.0, 1.0 - float(part.sum())) for part in (listed.most, listed.least))
        self.rest = Part(np.array([max(0.0, least - DOUBLE)]), np.array([min(1.0, most + DOUBLE)]))
        self.cap = min(float(listed.most.min()), float(self.rest.most[0]))
