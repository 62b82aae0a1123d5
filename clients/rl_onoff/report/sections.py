"""What a report says, as tables: every figure is drawn from one, and the CSV files are the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_onoff.report.atlas import HISTOGRAM_EDGES, Atlas
from rl_onoff.report.outcomes import Flips
from rl_onoff.report.reading import Condition

Cell = str | int | float | None

_TOKENS = 30


@dataclass(frozen=True, slots=True)
class Section:
    """One table. `name` is that of its files; `missing` says what the runs lack where there are no rows."""

    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    missing: str = ""
    figure: bool = True


def condition_table(conditions: Sequence[Condition], metric: str | None) -> Section:
    """Every condition: who took over how much, and the metric with its interval."""
    rows = []
    for each in conditions:
        value = _metric(each, metric)
        rows.append(
            (
                each.name,
                each.role,
                each.direction,
                each.share,
                *(value.get(key) for key in ("value", "low", "high")),
                each.summary.get("results"),
                each.summary.get("failed"),
            )
        )
    return Section(
        "conditions",
        "Conditions",
        "Intervals are 95%, by drawing problems anew (2,000 times, the same draws for every condition).",
        ("condition", "role", "direction", "share taken over", metric or "metric", "low", "high", "results", "failed"),
        tuple(rows),
        figure=False,
    )


def pareto(conditions: Sequence[Condition], metric: str | None) -> Section:
    """The metric against the share of tokens taken over."""
    rows = [
        (each.name, each.role, each.direction, each.share, *(value[key] for key in ("value", "low", "high")))
        for each in conditions
        if each.share is not None and (value := _metric(each, metric)).get("value") is not None
    ]
    return Section(
        "pareto",
        f"{metric or 'The metric'} against the share of tokens taken over",
        "Filled: a policy. Hollow: its control, which hands over as many tokens at random places. Lines: each model "
        "alone. Bars are 95% intervals over problems.",
        ("condition", "role", "direction", "share", "value", "low", "high"),
        tuple(rows) if any(row[1] == "policy" for row in rows) else (),
        "No policy with a metric: run switch or sweep with metrics.",
    )


def pass_at_k(conditions: Sequence[Condition], metric: str | None) -> Section:
    """pass@k of every condition that has several samples a problem."""
    rows = [
        (each.name, each.role, int(k), found["value"], found["low"], found["high"])
        for each in conditions
        for k, found in (_metric(each, metric).get("pass_at_k") or {}).items()
        if each.role != "control"
    ]
    return Section(
        "pass_at_k",
        "pass@k",
        "The chance that one of k samples is right (Chen et al., arXiv 2107.03374, equation 1).",
        ("condition", "role", "k", "value", "low", "high"),
        tuple(rows) if any(row[2] > 1 for row in rows) else (),
        "Needs several samples a problem (n) and a metric that is right or wrong.",
    )


def histogram(atlas: Atlas | None) -> Section:
    """Tokens by how far apart the models were, in quarters of a decade."""
    rows: list[tuple[Cell, ...]] = []
    if atlas is not None and atlas.tokens:
        rows.append((0.0, float(HISTOGRAM_EDGES[0]), atlas.below, atlas.below / atlas.tokens))
        for i, count in enumerate(atlas.histogram.tolist()):
            if count:
                edges = float(HISTOGRAM_EDGES[i]), float(HISTOGRAM_EDGES[i + 1])
                rows.append((*edges, count, count / atlas.tokens))
        if atlas.infinite:
            rows.append((math.inf, math.inf, atlas.infinite, atlas.infinite / atlas.tokens))
    floor = ""
    if atlas is not None and atlas.noise_floor is not None:
        floor = f" Noise floor of the arithmetic: {atlas.noise_floor:.2g} (dashed)."
    return Section(
        "histogram",
        f"How far apart: {_measure(atlas)} of {_count(atlas)} tokens",
        "Tokens per quarter of a decade, both axes logarithmic; the first bar is all below, zero included." + floor,
        ("from", "to", "tokens", "share"),
        tuple(rows),
        "Needs a run of switch or divergence.",
    )


def position(atlas: Atlas | None) -> Section:
    """The mean over twentieths of the text."""
    rows = tuple(atlas.by_position.rows()) if atlas is not None else ()
    return Section(
        "position",
        f"Where in the text: mean {_measure(atlas)} by relative position",
        "Means over tokens; the band is twice the standard error, clustered by result.",
        ("from", "to", "tokens", "mean", "standard error"),
        rows,
        "Needs a run of switch or divergence.",
    )


def entropy(atlas: Atlas | None) -> Section:
    """The mean over A's entropy."""
    rows = tuple(atlas.by_entropy.rows()) if atlas is not None else ()
    return Section(
        "entropy",
        f"Where A is unsure: mean {_measure(atlas)} by the entropy of A",
        "Means over tokens; bars are twice the standard error, clustered by result.",
        ("from", "to", "tokens", "mean", "standard error"),
        rows,
        "Needs entropy_a at every token: switch --record entropy_a, or divergence --measure js --measure entropy_a.",
    )


def shifts(atlas: Atlas | None) -> Section:
    """Unshifted, marginal and shifted tokens."""
    found = atlas.shifts() if atlas is not None else {}
    return Section(
        "shifts",
        "How B's best token ranks in A",
        "Unshifted: it is A's best as well; marginal: A's second or third; shifted: further down (URIAL, section 2).",
        ("class", "share"),
        tuple(found.items()),
        "Needs rank_of_b_in_a at every token (switch --record rank_of_b_in_a), or a run of divergence.",
    )


def run_lengths(atlas: Atlas | None) -> Section:
    """How long each model led at a stretch."""
    runs: Mapping[str, Mapping[int, int]] = atlas.runs if atlas is not None else {}
    rows = [(lead.upper(), length, count) for lead in runs for length, count in sorted(runs[lead].items())]
    both = all(runs.get(lead) for lead in "ab")
    return Section(
        "run_lengths",
        "How long a model leads",
        "Runs of tokens under one lead, by their length.",
        ("lead", "tokens", "runs"),
        tuple(rows) if both else (),
        "Needs a switched run in which the lead changes.",
    )


def top_tokens(atlas: Atlas | None) -> Section:
    """Tokens of the vocabulary by their share of all divergence."""
    rows: list[tuple[Cell, ...]] = []
    if atlas is not None:
        whole = sum(token.total for token in atlas.vocabulary.values()) or 1.0
        best = sorted(atlas.vocabulary.items(), key=lambda each: (-each[1].total, each[0]))[:_TOKENS]
        rows = [
            (text, token.count, token.total / token.count, token.largest, token.total / whole) for text, token in best
        ]
    return Section(
        "top_tokens",
        f"Which tokens: the {_TOKENS} with most of the {_measure(atlas)}",
        "The value at a token is that of the two distributions it was drawn from.",
        ("token", "times", "mean", "largest", "share of all"),
        tuple(rows),
        "Needs results that hold the texts of their tokens.",
        figure=False,
    )


def largest(atlas: Atlas | None) -> Section:
    """Single places where the models are furthest apart."""
    rows = [
        (each["id"], each["sample"], each["position"], each["before"], each["token"], each["value"])
        for each in (atlas.largest() if atlas is not None else ())
    ]
    return Section(
        "largest",
        "The places furthest apart",
        "With the eight tokens before.",
        ("problem", "sample", "position", "before", "token", _measure(atlas)),
        tuple(rows),
        "Needs results that hold the texts of their tokens.",
        figure=False,
    )


def flip_table(flips: Flips | None) -> Section:
    """Who was right, by problem and sample."""
    rows: list[tuple[Cell, ...]] = []
    if flips is not None:
        marks = ("wrong", "right")
        order = sorted(flips.counts.items(), key=lambda each: each[0])
        rows = [(marks[a], marks[b], marks[s], count) for (a, b, s), count in order]
    return Section(
        "flips",
        "What switching turned",
        "Samples by who was right; equal samples have equal noise.",
        ("A alone", "B alone", "switched", "samples"),
        tuple(rows),
        "Needs A alone, B alone and a policy over the same problems, with a metric that is right or wrong.",
        figure=False,
    )


def _metric(condition: Condition, metric: str | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = condition.summary.get("metrics", {}).get(metric, {})
    return found


def _measure(atlas: Atlas | None) -> str:
    return "divergence" if atlas is None else atlas.measure


def _count(atlas: Atlas | None) -> str:
    return f"{atlas.tokens if atlas is not None else 0:,}"
