"""Statistics of `rl_onoff.statistics` as the answers of `/divergence` give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from app.services.nulls import finite
from app.services.text import Codec
from rl_onoff import statistics, summary
from rl_onoff.schemas import DivergenceSummary, Perplexities, StatisticsOut
from rl_onoff.schemas.divergence import BucketOut, EstimateOut, TokenPlace

#: Columns a summary needs beside what was asked for, as measures of the request's A and B.
NEEDED = ("top_prob_a", "rank_of_b_in_a")


def summarised(
    items: Sequence[statistics.ItemColumns], solutions: Sequence[list[int]], codec: Codec, first: int = 0
) -> DivergenceSummary:
    """Of items with these solutions' ids; `first` is the place of the first of them among the request's."""
    made = statistics.summarise(items)
    ratio = made.perplexity
    return DivergenceSummary(
        positions=made.positions,
        items=made.items,
        measures={name: _measure(each, solutions, codec, first) for name, each in made.measures.items()},
        top1_agreement=made.top1_agreement.value,
        top1=_estimate(made.top1_agreement),
        perplexity=Perplexities(
            a=finite(ratio.a),
            b=finite(ratio.b),
            ratio=None if math.isnan(ratio.ratio) else finite(ratio.ratio),
            ratio_stderr=finite(ratio.ratio_stderr),
            ratio_clustered_stderr=_perhaps(made.ratio_clustered_stderr),
        ),
        rms_delta_p=_estimate(made.rms_delta_p),
        mean_delta_p=_estimate(made.mean_delta_p),
        shifts={name: _estimate(share) for name, share in made.shifts.items()},
        by_confidence=[_bucket(each) for each in made.by_confidence],
        by_position=[_bucket(each) for each in made.by_position],
    )


def plain(values: summary.Statistics) -> StatisticsOut:
    """Statistics alone, null where infinite."""
    fields = asdict(values)
    fields["percentiles"] = {name: finite(cut) for name, cut in values.percentiles.items()}
    fields |= {name: finite(fields[name]) for name in ("min", "max")}
    if not math.isfinite(values.mean):  # of infinities of both signs there is none
        fields["mean"] = None
    return StatisticsOut(**fields)


def _measure(
    found: statistics.MeasureSummary, solutions: Sequence[list[int]], codec: Codec, first: int
) -> StatisticsOut:
    token = solutions[found.at.item][found.at.position]
    out = plain(found.statistics)
    out.clustered_stderr = found.clustered_stderr
    out.max_at = TokenPlace(
        item=first + found.at.item, position=found.at.position, token_id=token, token=codec.piece(token)
    )
    return out


def _estimate(found: statistics.Estimate) -> EstimateOut:
    return EstimateOut(value=found.value, stderr=found.stderr, clustered_stderr=found.clustered_stderr)


def _bucket(found: statistics.Bucket) -> BucketOut:
    means = {name: None if math.isnan(mean) else mean for name, mean in found.means.items()}
    return BucketOut(low=found.low, high=found.high, count=found.count, means=means)


def _perhaps(value: float | None) -> float | None:
    return None if value is None else finite(value)
