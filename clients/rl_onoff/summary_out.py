"""Summaries as JSON has them, in answers of `/divergence` and in runs: null where infinite, or not to be told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from rl_onoff import statistics, summary
from rl_onoff.schemas import DivergenceSummary, Perplexities, StatisticsOut
from rl_onoff.schemas.divergence import BucketOut, EstimateOut, TokenPlace

Named = Callable[[statistics.Place], TokenPlace]


def divergence_summary(made: statistics.Summary, named: Named) -> DivergenceSummary:
    """`named` tells which token is at a place."""
    return DivergenceSummary(
        positions=made.positions,
        items=made.items,
        measures={name: measure(each, named) for name, each in made.measures.items()},
        top1_agreement=made.top1_agreement.value,
        top1=_estimate(made.top1_agreement),
        perplexity=Perplexities(**{name: _known(value) for name, value in asdict(made.perplexity).items()}),
        delta_p=measure(made.delta_p, named),
        rms_delta_p=_estimate(made.rms_delta_p),
        mean_delta_p=_estimate(made.mean_delta_p),
        shifts={name: _estimate(share) for name, share in made.shifts.items()},
        by_confidence=[_bucket(each) for each in made.by_confidence],
        by_position=[_bucket(each) for each in made.by_position],
    )


def measure(found: statistics.MeasureSummary, named: Named) -> StatisticsOut:
    """Statistics of one measure over all items."""
    out = plain(found.statistics)
    out.clustered_stderr = _known(found.clustered_stderr)
    out.max_at = named(found.at)
    return out


def plain(values: summary.Statistics) -> StatisticsOut:
    """Statistics alone."""
    fields = asdict(values)
    fields |= {name: _known(fields[name]) for name in ("mean", "stderr", "std", "min", "max")}
    fields["percentiles"] = {name: _known(cut) for name, cut in values.percentiles.items()}
    return StatisticsOut(**fields)


def _estimate(found: statistics.Estimate) -> EstimateOut:
    return EstimateOut(value=found.value, stderr=_known(found.stderr), clustered_stderr=_known(found.clustered_stderr))


def _bucket(found: statistics.Bucket) -> BucketOut:
    means = {name: _known(mean) for name, mean in found.means.items()}
    return BucketOut(low=found.low, high=found.high, count=found.count, means=means)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
