"""Sections about how well the texts did: accuracy against the share of B's tokens, pass@k, flips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rl_onoff.metrics.bootstrap import Estimate
from rl_onoff.report import figures
from rl_onoff.report.heatmaps import anchor
from rl_onoff.report.outcomes import Flips, Outcomes, flips, is_binary, is_mean
from rl_onoff.report.page import Section
from rl_onoff.report.reading import Part, Role, Runs
from rl_onoff.report.style import drawn
from rl_onoff.report.tables import Cell, Table

#: Switched parts in the figure of pass@k, beside A and B.
_SWITCHED_SHOWN = 4
_ALONE: Final[tuple[Role, Role]] = ("a", "b")
_TITLES = {"a_to_b": "A leads, B takes over", "b_to_a": "B leads, A takes over"}


@dataclass(frozen=True)
class Results:
    """The outcomes of every part that has texts, by its label. `metric` and `condition`: what the user wants to see."""

    runs: Runs
    outcomes: Mapping[str, Outcomes]
    metric: str | None = None
    condition: str | None = None

    def alone(self, role: Role, metric: str | None = None, like: Outcomes | None = None) -> Outcomes | None:
        """Of A or B alone; of several, the one that has most of the samples of `like`."""
        found = [self.outcomes[part.label] for part in self.runs.of(role)]
        if metric is None or like is None:
            return found[0] if found else None
        samples = like.samples(metric)
        return max(found, key=lambda each: len(samples & each.samples(metric)), default=None)

    def metrics(self) -> list[str]:
        """Metrics that any text was scored by, those that are right or wrong before the others."""
        names = dict.fromkeys(name for part in self.runs.parts for name in part.metrics)
        scored = [
            name
            for name in names
            if any(name in each.scores or name in each.corpora for each in self.outcomes.values())
        ]
        return sorted(scored, key=lambda name: (name != self.metric, not is_binary(name, self.outcomes)))

    def binary(self) -> str | None:
        """The first metric that is right or wrong."""
        return next((name for name in self.metrics() if is_binary(name, self.outcomes)), None)

    def best(self) -> Part | None:
        """The switched part that the flips and the texts are of: A leads if any does; most right, then fewest of B."""
        if self.condition is not None:
            return self.runs.named(self.condition)
        metric = self.binary() or next(filter(is_mean, self.metrics()), None)

        def rank(part: Part) -> tuple[bool, float, float]:
            outcomes = self.outcomes[part.label]
            scores = [value for row in outcomes.scores.get(metric or "", {}).values() for value in row.values()]
            by_b = sum(own for own, _ in outcomes.written.values())
            return (part.b_leads, -sum(scores) / max(1, len(scores)), by_b / max(1, outcomes.tokens))

        return min(self.runs.of("switched"), key=rank, default=None)


def accuracy(results: Results) -> list[Section]:
    """One section per metric; the first says so where no run has any."""
    metrics = results.metrics()
    if not metrics:
        reason = "No run has a score: give sample, switch or sweep a metric, such as --metric exact_match."
        return [Section("accuracy", "Accuracy and the share of B's tokens", missing=reason)]
    return [_accuracy(results, name, index) for index, name in enumerate(metrics)]


def _accuracy(results: Results, metric: str, index: int) -> Section:
    name = "accuracy" if index == 0 else f"accuracy-{index + 1}"
    section = Section(name, f"{metric} and the share of B's tokens")
    table = Table(
        [
            "#",
            "condition",
            "role",
            "control of",
            *_spread("B's tokens"),
            *_spread(metric),
            "recovery",
            "problems",
            "texts",
        ]
    )
    a, b = (None if (alone := results.alone(role)) is None else alone.mean(metric) for role in _ALONE)
    panels: dict[str, list[figures.Point]] = {}
    unpaired: list[str] = []
    for part in results.runs.parts:
        outcomes = results.outcomes.get(part.label)
        value = outcomes.mean(metric) if outcomes else None
        if outcomes is None or value is None:
            continue
        share = _share(part, outcomes)
        number = len(table.rows) + 1
        own = {role: results.alone(role, metric, outcomes) for role in _ALONE}
        recovery = _recovery(value, *(None if each is None else each.mean(metric) for each in own.values()))
        if part.role in ("switched", "control"):
            unpaired += _unpaired(part.label, metric, outcomes, own)
        spread = [*_values(share), *_values(value)]
        row = [number, part.label, part.role, part.control_of, *spread, recovery, value.problems, outcomes.texts]
        table.rows.append(row)
        if part.role in ("switched", "control") and share and math.isfinite(value.value):
            kind = str(part.policy.get("kind", "switched"))
            point = figures.Point(number, kind, share, value, part.role == "control")
            panels.setdefault(_TITLES[part.direction], []).append(point)
    section.tables.append((name, "95% intervals: bootstrap over problems, with all their samples. Recovery is "
                           "(value - A's)/(B's - A's).", table))  # fmt: skip
    for role, reference in (("A", a), ("B", b)):
        if reference is None and panels:
            section.says.append(
                f"No run of {role} alone is here: its reference is missing. Give its sample run as well."
            )
    if panels and not any(point.control for each in panels.values() for point in each):
        section.says.append("No random control with the same share of tokens is here; rl-onoff sweep makes one.")
    section.says += unpaired
    if not panels:
        section.missing = "No switched run is here, so there is no share of B's tokens to draw against."
        return section
    a, b = (each if each and math.isfinite(each.value) else None for each in (a, b))
    size = (8.6 if len(panels) > 1 else 5.6, 4.2)
    section.figure = drawn(figures.accuracy(panels, a, b, metric), size=size, columns=len(panels), share_y=True)
    section.alt = (
        f"{metric} against the share of tokens that B wrote, with 95% intervals; the table below has the numbers"
    )
    section.says.append(
        "Numbers at the points are the table's first column. Dashed: A and B alone, with their intervals."
    )
    return section


def _recovery(value: Estimate, a: Estimate | None, b: Estimate | None) -> float | None:
    if a is None or b is None or a.value == b.value or not math.isfinite(value.value + a.value + b.value):
        return None
    return (value.value - a.value) / (b.value - a.value)


def _unpaired(label: str, metric: str, outcomes: Outcomes, alone: Mapping[Role, Outcomes | None]) -> Iterator[str]:
    """What to know of a recovery that compares samples of other noise."""
    samples = outcomes.samples(metric)
    for role, reference in alone.items():
        if reference is not None and (shared := len(samples & reference.samples(metric))) < len(samples):
            yield (
                f"{label}: {role.upper()} alone has {shared} of its {len(samples)} samples, by problem and seed; "
                "recovery is of the samples that each has."
            )


def _share(part: Part, outcomes: Outcomes) -> Estimate | None:
    found = outcomes.share()
    if part.role in ("a", "b") and found is not None:
        share = 1.0 if part.role == "b" else 0.0
        return Estimate(share, share, share, found.problems)
    return found if part.role in ("switched", "control") else None


def pass_at_k(results: Results) -> Section:
    """Of A, B and switched."""
    section = Section("pass-at-k", "pass@k")
    metric = results.binary()
    if metric is None:
        section.missing = "No run has a metric that is right or wrong."
        return section
    best = results.best()
    switched = sorted(results.runs.of("switched"), key=lambda part: part is not best)
    parts = [*results.runs.of("a", "b", "sample"), *switched]
    series = [
        (part.label, part.role, found) for part in parts if (found := results.outcomes[part.label].pass_at_k(metric))
    ]
    table = Table(["condition", "k", *_spread("pass@k")])
    for label, _, found in series:
        table.rows += [[label, k, *_values(value)] for k, value in found.items()]
    section.tables.append(
        ("pass-at-k", f"By {metric}; unbiased estimator of Chen et al. 2021, intervals over problems.", table)
    )
    if max((len(found) for _, _, found in series), default=0) < 2:
        section.missing = "One sample per problem: there is pass@1 alone, and no curve. Give --n 4."
        return section
    shown = [each for each in series if each[1] != "switched"]
    others = [each for each in series if each[1] == "switched"]
    if len(others) > _SWITCHED_SHOWN:
        section.says.append(
            f"The figure shows {_SWITCHED_SHOWN} of {len(others)} switched conditions; the table has all."
        )
    section.figure = drawn(figures.pass_at_k([*shown, *others[:_SWITCHED_SHOWN]]), size=(6.2, 4.0))
    section.alt = "pass@k against k for A, B and switched generations; the table below has the numbers"
    return section


def flip_table(results: Results, linked: Iterable[str]) -> tuple[Section, Flips | None]:
    """Which samples switching made right or wrong. `linked`: problems that have an element in the page."""
    section = Section("flips", "What switching turned right, and wrong")
    metric, switched = results.binary(), results.runs.of("switched")
    if metric is None or not switched or any(results.alone(role) is None for role in _ALONE):
        section.missing = (
            "This needs A alone, B alone and a switched run over the same problems, and a metric of right or wrong."
        )
        return section, None
    counts = Table(
        [
            "condition", "samples", "A wrong, now right", "A right, now wrong", "right in both", "wrong in both",
            "B right, now wrong", "B wrong, now right",
        ]
    )  # fmt: skip
    for part in [*switched, *results.runs.of("control")]:
        cells = _flips(results, metric, results.outcomes[part.label]).cells
        by_a = [sum(n for (x, _, z), n in cells.items() if (x, z) == pair) for pair in
                ((False, True), (True, False), (True, True), (False, False))]  # fmt: skip
        by_b = [sum(n for (_, y, z), n in cells.items() if (y, z) == pair) for pair in ((True, False), (False, True))]
        counts.rows.append([part.label, sum(cells.values()), *by_a, *by_b])
    section.tables.append(
        (
            "flips",
            f"Samples by {metric}; sample i has the same noise under A, B and switched, where the seeds are.",
            counts,
        )
    )
    best = results.best()
    if best is None:
        return section, None
    found = _flips(results, metric, results.outcomes[best.label])
    problems = Table(["problem", "samples", "A right", "B right", "switched right", "gained", "lost"])
    known = set(linked)
    for index, each in enumerate(found.problems):
        problems.rows.append([each.id, each.samples, each.a, each.b, each.switched, each.gained, each.lost])
        if each.id in known:
            problems.links[index] = anchor(each.id)
    caption = f"Problems under “{best.label}”, those it changed first; the linked ones are below, token by token."
    section.tables.append(("flipped-problems", caption, problems))
    return section, found


def _flips(results: Results, metric: str, switched: Outcomes) -> Flips:
    a, b = (results.alone(role, metric, switched) or Outcomes() for role in _ALONE)
    return flips(metric, a, b, switched)


def _spread(name: str) -> list[str]:
    return [name, f"{name} low", f"{name} high"]


def _values(estimate: Estimate | None) -> list[Cell]:
    return [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]
