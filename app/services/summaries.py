"""Statistics of `rl_onoff.statistics` as the answers of `/divergence` give them."""

from __future__ import annotations

from collections.abc import Sequence

from app.services.text import Codec
from rl_onoff import statistics
from rl_onoff.schemas import DivergenceSummary
from rl_onoff.schemas.divergence import TokenPlace
from rl_onoff.summary_out import divergence_summary

#: Columns a summary needs beside what was asked for, as measures of the request's A and B.
NEEDED = ("top_prob_a", "rank_of_b_in_a")


def summarised(
    items: Sequence[statistics.ItemColumns], solutions: Sequence[list[int]], codec: Codec, first: int = 0
) -> DivergenceSummary:
    """Of items with these solutions' ids; `first` is the place of the first of them among the request's."""

    def named(at: statistics.Place) -> TokenPlace:
        token = solutions[at.item][at.position]
        return TokenPlace(item=first + at.item, position=at.position, token_id=token, token=codec.piece(token))

    return divergence_summary(statistics.summarise(items), named)
