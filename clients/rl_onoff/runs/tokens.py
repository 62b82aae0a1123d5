"""What a run of `divergence` says over all of its items: as one answer of the service would, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_onoff.errors import DataError
from rl_onoff.runs.floor import Floor
from rl_onoff.schemas.divergence import TokenPlace, with_infinities
from rl_onoff.statistics import Comparison, ItemColumns, Place
from rl_onoff.summary import KEPT
from rl_onoff.summary_out import divergence_summary

Record = Mapping[str, Any]


def item_columns(record: Record) -> ItemColumns:
    """The columns of a line of results. Raises KeyError where it has not all of them."""
    negative, columns = record["negative_infinite"], record["columns"]
    logprobs = {name: record[name] for name in ("logprobs_a", "logprobs_b")}
    return ItemColumns(
        measures={
            name: np.array(with_infinities(values, negative.get(name, ())), dtype=np.float64)
            for name, values in record["values"].items()
        },
        **{name: _column(with_infinities(values, range(len(values)))) for name, values in logprobs.items()},
        top1_agree=_column(columns["top1_agree"]),
        top_prob_a=_column(columns["top_prob_a"]),
        rank=_column(columns["rank_of_b_in_a"]),
    )


def _column(values: list[float]) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def summarise_divergence(records: Iterable[Record], kept: int = KEPT) -> dict[str, Any]:
    """The summary of results of `divergence`: that of one request with all items, and where it came from.

    It is that of `DivergenceResponse`, where an `item` is told by its id. Percentiles are of `kept` values drawn from
    all, where there are more: `percentiles_from` says of how many. Beside it `noise_floor`, where that was asked for,
    and `provenance`: null where results differ in it; then `provenances` has each, with its number of `results`.
    Raises DataError for a record that lacks what the summary is made of.
    """
    comparison, floor, origins = Comparison(kept), Floor(), Origins()
    tokens: dict[Place, TokenPlace] = {}
    results = failed = 0
    for record in records:
        if "error" in record:
            failed += 1
            continue
        try:
            comparison.add(item_columns(record))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the result of {record['id']} cannot be summed up: {error!r}") from None
        tokens = {at: tokens.get(at) or _named(record, at.position) for at in comparison.largest()}
        floor.add(record)
        origins.add(record["provenance"])
        results += 1
    summary: dict[str, Any] = {"results": results, "failed": failed}
    if not results:
        return summary | {"positions": 0}
    made = comparison.summary()
    summary |= divergence_summary(made, tokens.__getitem__).model_dump()
    for name, each in made.measures.items():
        summary["measures"][name]["percentiles_from"] = each.percentiles_from
    summary["delta_p"]["percentiles_from"] = made.delta_p.percentiles_from
    return summary | floor.summary() | origins.summary()


def _named(record: Record, position: int) -> TokenPlace:
    return TokenPlace(
        item=str(record["id"]),
        position=position,
        token_id=record["token_ids"][position],
        token=record["tokens"][position],
    )


class Origins:
    """Provenances that differ, and how many results have each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, provenance: Mapping[str, Any]) -> None:
        key = json.dumps(provenance, sort_keys=True)
        self._counts[key] = self._counts.get(key, 0) + 1

    def summary(self) -> dict[str, Any]:
        found = [(json.loads(key), count) for key, count in self._counts.items()]
        if len(found) == 1:
            return {"provenance": found[0][0]}
        return {"provenance": None, "provenances": [each | {"results": count} for each, count in found]}
