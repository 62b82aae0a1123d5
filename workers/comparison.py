"""All measures of two rows at once, on a CPU: two sweeps over both rows, and nothing of a row's size beside them.

It takes logits or log-probabilities in float32, bfloat16 or float16 and computes what `rl_onoff.divergence` defines, by
the same forms without cancellation (`workers.sweeps` has the loops).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rl_onoff import divergence
from workers import sweeps
from workers.threads import in_parts

#: Orders of Rényi's divergence so close to 1, but 1 itself, are no matter for float32.
_NEAR_ONE: Final = 0.05

Column = npt.NDArray[np.float64]

_COLUMNS: Final = {
    "js": sweeps.JS,
    "kl_ab": sweeps.KL_AB,
    "kl_ba": sweeps.KL_BA,
    "tv": sweeps.TV,
    "hellinger": sweeps.HELLINGER,
    "delta_logp": sweeps.DELTA,
    "entropy_a": sweeps.ENTROPY_A,
    "entropy_b": sweeps.ENTROPY_B,
    "top_prob_a": sweeps.TOP_A,
    "top_prob_b": sweeps.TOP_B,
    "rank_of_a_in_b": sweeps.RANK_OF_A,
    "rank_of_b_in_a": sweeps.RANK_OF_B,
}
_DISTANCES: Final = ("js", "kl_ab", "kl_ba", "tv", "entropy_a", "entropy_b")


class Rows(NamedTuple):
    """`[n, columns]` C-contiguous; `form` names what the entries are, half precisions being bit patterns (uint16)."""

    values: npt.NDArray[Any]
    form: str

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Rows:
        """Of a numpy array in float32 or float16, or of bfloat16 bit patterns in uint16. Others raise TypeError."""
        match values.dtype.name:
            case "float32":
                return cls(np.ascontiguousarray(values), "float32")
            case "float16":
                return cls(np.ascontiguousarray(values).view(np.uint16), "float16")
            case "uint16":
                return cls(np.ascontiguousarray(values), "bfloat16")
        raise TypeError(f"rows must be float32, float16 or bfloat16 as uint16, not {values.dtype}")

    def stored(self) -> npt.NDArray[Any]:
        """As `vectorised.entry` takes them."""
        return self.values.view(np.int16) if self.form == "float16" else self.values

    def float32(self, index: int, size: int) -> npt.NDArray[np.float32]:
        """One row, widened."""
        row = self.values[index, :size]
        if self.form == "bfloat16":
            return (row.astype(np.uint32) << 16).view(np.float32)
        return row.view(np.float16).astype(np.float32) if self.form == "float16" else row

    def part(self, rows: slice) -> Rows:
        return Rows(self.values[rows], self.form)

    def widened(self) -> Rows:
        """All rows in float32."""
        if self.form == "float32":
            return self
        count, size = self.values.shape
        wide = np.empty((count, size), np.float32)
        for t in range(count):
            wide[t] = self.float32(t, size)
        return Rows(wide, "float32")


class Compared(NamedTuple):
    """Measures of n positions by name, and the log-probabilities of the scored tokens, `[n]` float64 each.

    Where a row holds NaN or +inf everything of its position is NaN.
    """

    measures: dict[str, Column]
    logprobs_a: Column
    logprobs_b: Column
    top1_agree: Column

    @classmethod
    def joined(cls, parts: Sequence[Compared]) -> Compared:
        """Of consecutive positions; of one part at least."""
        if len(parts) == 1:
            return parts[0]
        measures = {name: np.concatenate([part.measures[name] for part in parts]) for name in parts[0].measures}
        rest = (np.concatenate(columns) for columns in zip(*(part[1:] for part in parts), strict=True))
        return cls(measures, *rest)


class Plan(NamedTuple):
    """What is asked of every pair of rows: measures by name, as `divergence.parse` reads them, and Rényi's orders.

    An order is negative where the divergence is that of (B, A).
    """

    parsed: dict[str, tuple[str, float | None]]
    orders: list[float]

    @classmethod
    def of(cls, measures: Iterable[str]) -> Plan:
        parsed = {name: divergence.parse(name) for name in measures}
        signs = {"renyi": 1, "renyi_ba": -1}
        return cls(parsed, [signs[base] * value for base, value in parsed.values() if base in signs and value])

    def asks(self, *bases: str) -> bool:
        return any(base in bases for base, _ in self.parsed.values())

    def compared(self, out: Column, overlaps: Callable[[int], Column]) -> Compared:
        """Columns `[n, FIRST_RENYI + orders]` of `workers.sweeps` by name; `overlaps` gives `topk_overlap`."""
        found = iter(range(sweeps.FIRST_RENYI, out.shape[1]))
        columns: dict[str, Column] = {}
        for name, (base, value) in self.parsed.items():
            if base in ("renyi", "renyi_ba"):
                columns[name] = out[:, next(found)].copy()
            elif base == "topk_overlap" and value is not None:
                columns[name] = overlaps(int(value))
            elif base == "top1_agree":
                columns[name] = _agreement(out)
            else:
                columns[name] = out[:, _COLUMNS[base]].copy()
        return Compared(columns, out[:, sweeps.TOKEN_A].copy(), out[:, sweeps.TOKEN_B].copy(), _agreement(out))


def compare(
    a: Rows,
    b: Rows,
    measures: Iterable[str],
    token_ids: Sequence[int] | npt.NDArray[np.int64],
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    normalised: bool = False,
    threads: int = 1,
) -> Compared:
    """Measures (see `divergence.MEASURES`) of A's and B's rows `[n, columns]`, of their first `vocab_size` entries.

    Rows are logits, or log-probabilities, which are normalised again unless `normalised` says that they are. Scratch
    memory: 1 MB a thread (`topk_overlap`: a few rows).
    """
    plan = Plan.of(measures)
    if a.form != b.form:
        a, b = a.widened(), b.widened()
    size = a.values.shape[1] if vocab_size is None else vocab_size
    count = a.values.shape[0]
    out = np.full((count, sweeps.FIRST_RENYI + len(plan.orders)), math.nan)
    sums = np.array(
        [
            plan.asks(*_DISTANCES) or 1.0 in map(abs, plan.orders),  # Rényi's of order 1 is KL's
            plan.asks("hellinger"),
            plan.asks("rank_of_b_in_a"),
            plan.asks("rank_of_a_in_b"),
            normalised,
        ]
    )
    ids = np.asarray(token_ids, dtype=np.int64)
    scale = 1.0 / temperature

    def work(begin: int, end: int) -> None:
        part = slice(begin, end)
        sweeps.compare_rows(
            a.stored()[part],
            b.stored()[part],
            size,
            scale,
            ids[part],
            sums,
            np.array(plan.orders, dtype=np.float64),
            out[part],
        )

    in_parts(work, count, threads)
    for column, alpha in enumerate(plan.orders, start=sweeps.FIRST_RENYI):
        if 0 < abs(1 - abs(alpha)) < _NEAR_ONE:
            p, q = (a, b) if alpha > 0 else (b, a)
            out[:, column] = np.where(np.isnan(out[:, column]), math.nan, _renyi(p, q, size, scale, abs(alpha)))
    wrong = np.isnan(out[:, sweeps.BEST_A])
    return plan.compared(out, lambda k: np.where(wrong, math.nan, _overlaps(a, b, size, k)))


def _agreement(out: Column) -> Column:
    agree: Column = (out[:, sweeps.BEST_A] == out[:, sweeps.BEST_B]).astype(np.float64)
    return agree


def _renyi(p: Rows, q: Rows, size: int, scale: float, alpha: float) -> Column:
    """In float64, row by row: near order 1 the differences of float32 are divided by next to nothing."""
    found = []
    for t in range(p.values.shape[0]):
        with np.errstate(invalid="ignore"):  # rows that are wrong, of which the loops have told
            shifted = [row - row.max() for row in (r.float32(t, size).astype(np.float64) * scale for r in (p, q))]
            logp, logq = ((row - math.log(np.exp(row).sum()))[None] for row in shifted)
            found.append(divergence.renyi(logp, logq, alpha)[0])
    return np.array(found, dtype=np.float64)


def _overlaps(a: Rows, b: Rows, size: int, k: int) -> Column:
    """Row by row: array code over many rows at once would need many times their memory."""
    rows = ((a.float32(t, size)[None], b.float32(t, size)[None]) for t in range(a.values.shape[0]))
    return np.array([divergence.topk_overlap(p, q, k)[0] for p, q in rows], dtype=np.float64)
