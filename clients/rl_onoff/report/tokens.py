"""What happened at the tokens of a part, in bounded memory: histograms, bins, the vocabulary, a few extreme places."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rl_onoff.schemas.divergence import with_infinities

Array = npt.NDArray[np.float64]

#: Edges of the histograms: eight bins per decade. What lies below counts as zero.
EDGES: Final[Array] = np.logspace(-8, 3, 89)
#: Equal parts of a text, from its first token to its last.
POSITIONS: Final = 20
#: Edges of the bins of A's entropy, in the run's units.
ENTROPIES: Final[Array] = np.linspace(0.0, 20.0, 201)
SHIFTS: Final = ("unshifted", "marginal", "shifted")
_PLACES: Final = 20
_BEFORE: Final = 12


class Means:
    """Means over tokens in `bins` bins, `[bins]`, with errors that take a text's tokens as one cluster.

    A mean over tokens is a ratio of sums over texts; its error by linearisation (Cochran, "Sampling Techniques",
    section 6.4), from sums alone.
    """

    def __init__(self, bins: int) -> None:
        self.sums, self.counts = np.zeros(bins), np.zeros(bins)
        self._ss, self._sc, self._cc, self._texts = (np.zeros(bins) for _ in range(4))

    def add(self, bins: npt.NDArray[np.intp], values: Array) -> None:
        """One text: the bin and the value of each of its tokens, `[T]`, values finite."""
        s = np.bincount(bins, values, minlength=len(self.sums)).astype(np.float64)
        c = np.bincount(bins, minlength=len(self.sums)).astype(np.float64)
        self.add_sums(s, c)

    def add_sums(self, s: Array, c: Array) -> None:
        """One text: sum of the values and number of the tokens in each bin."""
        self.sums += s
        self.counts += c
        self._ss += s * s
        self._sc += s * c
        self._cc += c * c
        self._texts += c > 0

    def mean(self) -> Array:
        """NaN where there is no token."""
        with np.errstate(invalid="ignore"):
            return self.sums / self.counts

    def stderr(self) -> Array:
        """NaN where fewer than two texts have a token."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self.sums / self.counts
            squares = np.maximum(self._ss - 2 * mean * self._sc + mean**2 * self._cc, 0.0)
            return np.where(self._texts > 1, np.sqrt(squares * self._texts / (self._texts - 1)) / self.counts, np.nan)


class Histogram:
    """Counts by `EDGES`; `below`: under the first edge, negative ones aside; `infinite` too is counted apart."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
        self.below = self.above = self.negative = self.infinite = self.total = 0
        self.finite_sum = 0.0

    def add(self, values: Array) -> None:
        """Values of one text; infinite ones are `inf`."""
        finite = values[np.isfinite(values)]
        self.total += values.size
        self.infinite += values.size - finite.size
        self.negative += int((finite < 0).sum())
        self.below += int(((finite >= 0) & (finite < EDGES[0])).sum())
        self.above += int((finite > EDGES[-1]).sum())
        self.counts += np.histogram(finite, EDGES)[0]
        self.finite_sum += float(finite.sum())

    @property
    def mean(self) -> float:
        """Of the finite values; NaN where there are none."""
        finite = self.total - self.infinite
        return self.finite_sum / finite if finite else math.nan

    def at_most(self, value: float) -> float:
        """The share of tokens with at most this value, up to a bin's width."""
        index = int(np.searchsorted(EDGES, value, side="right")) - 1
        inside = self.negative + self.below + int(self.counts[: max(index, 0)].sum())
        return inside / self.total if self.total else math.nan


@dataclass(order=True)
class Place:
    """A token with a large value, and where it is. Ordered by value, of equals the earlier is the larger."""

    value: float
    order: int
    id: str
    sample: int
    position: int
    token: str
    before: str


class TokenStats:
    """Add the records of a part; `measure` is the divergence that bins, tokens and places go by."""

    def __init__(self) -> None:
        self.measure: str | None = None
        self.histograms: dict[str, Histogram] = {}
        self.by_position = Means(POSITIONS)
        self.by_entropy = Means(len(ENTROPIES) - 1)
        self.plane = np.zeros((len(ENTROPIES) - 1, len(EDGES) - 1), dtype=np.int64)
        self.shifts = Means(len(SHIFTS))
        self.by_token: dict[int, list[float]] = {}
        self.texts: dict[int, str] = {}
        self.places: list[Place] = []
        self.runs: dict[str, Counter[int]] = {"a": Counter(), "b": Counter()}
        self.cut = self._records = 0
        #: Largest noise floor that a record told of, by what it is of and by measure.
        self.noise_floor: dict[str, dict[str, float]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """One text."""
        self._records += 1
        ids = record.get("token_ids") or []
        tokens = record.get("tokens") or []
        values = columns(record)
        if len(tokens) == len(ids):
            for number, token in zip(ids, tokens, strict=True):
                self.texts.setdefault(number, str(token))
        for name, column in values.items():
            if is_divergence(name):
                self.histograms.setdefault(name, Histogram()).add(column)
        self._shifts(record, values)
        self._lengths(str(record.get("leads") or ""), str(record.get("finish_reason") or ""))
        self._floor(record.get("noise_floor"))
        if self.measure is None:
            self.measure = main_measure(values)
        if self.measure in values and len(ids) == len(values[self.measure]) > 0:
            self._main(record, ids, tokens, values[self.measure], values.get("entropy_a"))

    def _main(
        self, record: Mapping[str, Any], ids: Sequence[int], tokens: Sequence[str], main: Array, entropy: Array | None
    ) -> None:
        finite = np.isfinite(main)
        places = (np.arange(main.size) * POSITIONS // main.size)[finite]
        self.by_position.add(places, main[finite])
        if entropy is not None and entropy.size == main.size:
            chosen = finite & np.isfinite(entropy)
            bins = np.clip(np.searchsorted(ENTROPIES, entropy[chosen], "right") - 1, 0, len(ENTROPIES) - 2)
            self.by_entropy.add(bins, main[chosen])
            rows = np.clip(np.searchsorted(EDGES, main[chosen], "right") - 1, 0, len(EDGES) - 2)
            np.add.at(self.plane, (bins, rows), 1)
        for index, (number, value) in enumerate(zip(ids, main.tolist(), strict=True)):
            kept = self.by_token.setdefault(number, [0.0, 0.0, 0.0])
            kept[0] += 1
            kept[1] += value if math.isfinite(value) else 0.0
            kept[2] = max(kept[2], value)
            if len(self.places) < _PLACES or value > self.places[0].value:
                self._place(record, tokens, index, value)

    def _place(self, record: Mapping[str, Any], tokens: Sequence[str], index: int, value: float) -> None:
        known = len(tokens) > index
        place = Place(
            value,
            -(self._records * 1_000_000 + index),
            str(record["id"]),
            int(record.get("sample") or 0),
            index,
            str(tokens[index]) if known else "",
            "".join(map(str, tokens[max(0, index - _BEFORE) : index])) if known else "",
        )
        (heapq.heappush if len(self.places) < _PLACES else heapq.heappushpop)(self.places, place)

    def _shifts(self, record: Mapping[str, Any], values: Mapping[str, Array]) -> None:
        """By the rank in A of B's most likely token (URIAL, section 2): as recorded, or from the text's summary."""
        rank = values.get("rank_of_b_in_a")
        if rank is not None and rank.size:
            self.shifts.add_sums(
                np.array([(rank <= 1).sum(), ((rank > 1) & (rank <= 3)).sum(), (rank > 3).sum()], dtype=np.float64),
                np.full(3, float(rank.size)),
            )
            return
        summary = record.get("summary") or {}
        shares = summary.get("shifts") or {}
        if shares.keys() >= set(SHIFTS) and summary.get("positions"):
            count = float(summary["positions"])
            self.shifts.add_sums(np.array([shares[name]["value"] * count for name in SHIFTS]), np.full(3, count))

    def _lengths(self, leads: str, reason: str) -> None:
        runs = [(lead, sum(1 for _ in group)) for lead, group in groupby(leads)]
        for lead, length in runs:
            if lead in self.runs:
                self.runs[lead][length] += 1
        self.cut += bool(runs) and runs[-1][0] == "b" and reason != "stop"

    def _floor(self, floor: Any) -> None:
        if not isinstance(floor, Mapping):
            return
        for kind, measures in floor.items():
            for name, value in measures.items() if isinstance(measures, Mapping) else ():
                if isinstance(value, Mapping):
                    value = value.get("max")
                if isinstance(value, int | float):
                    kept = self.noise_floor.setdefault(str(kind), {})
                    kept[str(name)] = max(kept.get(str(name), 0.0), float(value))

    def top_tokens(self, count: int = 25) -> list[tuple[int, int, float, float]]:
        """Id, how often, mean and largest value, of the tokens with most divergence in sum."""
        ranked = sorted(self.by_token.items(), key=lambda each: (-each[1][1], each[0]))
        return [(number, int(n), total / n, most) for number, (n, total, most) in ranked[:count]]

    def top_places(self) -> list[Place]:
        """The places with the largest values, the largest first."""
        return sorted(self.places, reverse=True)


def columns(record: Mapping[str, Any]) -> dict[str, Array]:
    """Every measure a record has per token, `[T]`; None stands for infinity, positive but where the record tells."""
    found = {**(record.get("values") or {}), **(record.get("signals") or {})}
    if record.get("divergences"):
        found.setdefault(str(record.get("measure") or "js"), record["divergences"])
    negative = record.get("negative_infinite") or {}
    return {
        str(name): np.array(with_infinities(column, negative.get(name, ())), dtype=np.float64)
        for name, column in found.items()
    }


def is_divergence(measure: str) -> bool:
    """Whether a measure is zero where the models agree and grows as they part."""
    return measure.partition(":")[0] in ("js", "kl_ab", "kl_ba", "tv", "hellinger", "renyi", "renyi_ba")


def main_measure(names: Mapping[str, Any]) -> str | None:
    """JS where it is there, else the first divergence."""
    return "js" if "js" in names else next(filter(is_divergence, names), None)


def with_text(stats: Iterator[TokenStats]) -> dict[int, str]:
    """The text of every token id that any record told of."""
    known: dict[int, str] = {}
    for each in stats:
        for number, text in each.texts.items():
            known.setdefault(number, text)
    return known
