"""Sections about tokens: where and how far the models part, at which tokens, and how long B leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl_onoff.report import token_figures as figures
from rl_onoff.report.figures import SERIES_SHOWN
from rl_onoff.report.page import Section
from rl_onoff.report.reading import Part, Runs
from rl_onoff.report.style import drawn, plain
from rl_onoff.report.tables import Table
from rl_onoff.report.tokens import EDGES, ENTROPIES, POSITIONS, SHIFTS, Histogram, TokenStats, is_divergence

_TOKENS_DRAWN = 15
_SHIFTS_DRAWN = 12
_NO_VALUES = "No run here has values per token: those of divergence, switch and sweep do."


@dataclass(frozen=True)
class Atlas:
    """The token statistics of every part, by its label. `texts`: of token ids, as far as a run told."""

    runs: Runs
    stats: Mapping[str, TokenStats]
    texts: Mapping[int, str]
    condition: str | None = None

    def measured(self) -> list[tuple[Part, TokenStats, str]]:
        """Parts with a divergence per token and its name: the wanted one, divergence runs, A, B, what was switched."""
        wanted = None if self.condition is None else self.runs.named(self.condition)
        order = ("divergence", "a", "b", "sample", "switched", "control")
        parts = sorted(self.runs.parts, key=lambda part: (part is not wanted, order.index(part.role)))
        found = [(part, self.stats[part.label]) for part in parts]
        return [
            (part, stats, stats.measure) for part, stats in found if stats.measure and stats.by_position.counts.any()
        ]


def histogram(atlas: Atlas) -> Section:
    """Shares of tokens on a log axis."""
    section = Section("divergence", "How far the models are apart")
    measured = atlas.measured()
    series = [
        (f"{part.label}: {name}", each, part, name)
        for part, stats, _ in measured
        for name, each in stats.histograms.items()
    ]
    series.sort(key=lambda each: each[3] != "js")
    if not series:
        section.missing = _NO_VALUES
        return section
    shown = series[:SERIES_SHOWN]
    floors = _floors(atlas)
    units = sorted({part.units for _, _, part, _ in shown})
    draw = figures.divergences([(*each[:2], floors.get(each[3], {})) for each in shown], " or ".join(units))
    section.figure = drawn(draw, size=(7.0, 1.0 + 1.45 * len(shown)), rows=len(shown))
    section.alt = "shares of tokens by divergence on a log axis; the table below has the counts"
    section.says += [
        f"Noise floor of {name}: {', '.join(f'{value:.2g} ({kind})' for kind, value in found.items())}; largest values."
        for name, found in floors.items()
    ]
    if not floors:
        section.says.append("The noise floor is not known: divergence --noise-floor records it.")
    if len(series) > len(shown):
        section.says.append(f"The figure shows {len(shown)} of {len(series)} series; the tables have all.")
    _histogram_tables(section, [each[:2] for each in series])
    return section


def _floors(atlas: Atlas) -> dict[str, dict[str, float]]:
    """The largest noise floor that any part told of, by measure and by what it is of."""
    found: dict[str, dict[str, float]] = {}
    for stats in atlas.stats.values():
        for kind, measures in stats.noise_floor.items():
            for name, value in measures.items():
                if value > 0 and is_divergence(name):
                    kept = found.setdefault(name, {})
                    kept[kind.replace("_", " ")] = max(value, kept.get(kind.replace("_", " "), 0.0))
    return found


def _histogram_tables(section: Section, series: list[tuple[str, Histogram]]) -> None:
    summary = Table(["series", "tokens", "mean", "at most 0.001, %", "at most 0.01, %", "at most 0.1, %", "infinite"])
    bins = Table(["series", "from", "to", "tokens"])
    for label, each in series:
        shares = [100 * each.at_most(limit) for limit in (0.001, 0.01, 0.1)]
        summary.rows.append([label, each.total, each.mean, *shares, each.infinite])
        bins.rows += [[label, None, 0.0, each.negative]] if each.negative else []
        bins.rows += [[label, 0.0, float(EDGES[0]), each.below]] if each.below else []
        bins.rows += [
            [label, float(low), float(high), int(count)]
            for low, high, count in zip(EDGES, EDGES[1:], each.counts, strict=False)
            if count
        ]
    section.tables.append(
        ("divergence", "Means over finite values; shares up to the width of a bin (a third).", summary)
    )
    section.tables.append(("divergence-histogram", "Tokens in each bin that has any.", bins))


def positions(atlas: Atlas) -> Section:
    """Mean divergence by place in the text."""
    section = Section("position", "Divergence by place in the text")
    measured = atlas.measured()
    if not measured:
        section.missing = _NO_VALUES
        return section
    measure = measured[0][2]
    same = [(part.label, stats.by_position) for part, stats, name in measured if name == measure]
    shown = same[:SERIES_SHOWN]
    if len(same) > len(shown):
        section.says.append(f"The figure shows {len(shown)} of {len(same)} series; the table has all.")
    section.figure = drawn(figures.by_position(shown, measure), size=(6.6, 4.0))
    section.alt = f"mean {measure} by relative position; the table below has the numbers"
    table = Table(["series", "measure", "from, %", "to, %", "tokens", "mean", "standard error"])
    width = 100 / POSITIONS
    for part, stats, name in measured:
        means = zip(stats.by_position.counts, stats.by_position.mean(), stats.by_position.stderr(), strict=True)
        table.rows += [
            [part.label, name, round(i * width, 6), round((i + 1) * width, 6), int(count), float(mean), float(error)]
            for i, (count, mean, error) in enumerate(means)
        ]
    section.tables.append(
        ("position", "Errors take the tokens of a text as one cluster; bands are 1.96 of them.", table)
    )
    return section


def entropy(atlas: Atlas) -> Section:
    """Divergence against A's entropy, of the first part that has both."""
    section = Section("entropy", "Divergence against the entropy of A")
    found = [each for each in atlas.measured() if each[1].plane.any()]
    if not found:
        section.missing = (
            "No run here has the entropy of A: rl-onoff divergence --measure js --measure entropy_a, or "
            "rl-onoff switch --record entropy_a."
        )
        return section
    part, stats, measure = found[0]
    if len(found) > 1:
        section.says.append(f"The figure is of {part.label}; the table has all {len(found)} series.")
    section.figure = drawn(figures.by_entropy(stats, measure, part.units), size=(8.6, 3.8), columns=2)
    section.alt = (
        f"{measure} of every token against the entropy of A, and its mean by entropy; numbers in the table below"
    )
    table = Table(["series", "measure", "entropy from", "to", "tokens", "mean", "standard error"])
    for each, one, name in found:
        means = zip(one.by_entropy.counts, one.by_entropy.mean(), one.by_entropy.stderr(), strict=True)
        table.rows += [
            [each.label, name, float(ENTROPIES[i]), float(ENTROPIES[i + 1]), int(count), float(mean), float(error)]
            for i, (count, mean, error) in enumerate(means)
            if count
        ]
    section.tables.append(
        (
            "entropy",
            "Mean divergence by bins of entropy; the figure has no mean of a bin with tokens of one text alone.",
            table,
        )
    )
    return section


def shifted(atlas: Atlas) -> Section:
    """Shares of unshifted, marginal and shifted tokens."""
    section = Section("shifts", "Unshifted, marginal and shifted tokens")
    found = [
        (part.label, stats.shifts)
        for part in atlas.runs.parts
        if (stats := atlas.stats[part.label]).shifts.counts.any()
    ]
    if not found:
        section.missing = "No run here tells them: rl-onoff divergence does, and switch with --record rank_of_b_in_a."
        return section
    section.says.append("B's most likely token is A's first (unshifted), second or third (marginal), or further down.")
    shown = found[:_SHIFTS_DRAWN]
    if len(found) > len(shown):
        section.says.append(f"The figure shows {len(shown)} of {len(found)} series; the table has all.")
    section.figure = drawn(figures.shifts(shown), size=(6.6, 1.5 + 0.3 * len(shown)))
    section.alt = "shares of tokens by the rank in A of B's most likely token; the table below has the numbers"
    table = Table(["series", "class", "share", "standard error", "tokens"])
    for label, means in found:
        rows = zip(SHIFTS, means.mean(), means.stderr(), strict=True)
        table.rows += [[label, name, float(share), float(error), int(means.counts[0])] for name, share, error in rows]
    section.tables.append(("shifts", "URIAL's classes (Lin et al. 2024, section 2); errors by text.", table))
    return section


def top_tokens(atlas: Atlas) -> Section:
    """Which tokens have most of the divergence, and the places where it is largest."""
    section = Section("tokens", "Tokens with most divergence")
    measured = atlas.measured()
    if not measured:
        section.missing = _NO_VALUES
        return section
    part, stats, measure = measured[0]
    total = sum(each[1] for each in stats.by_token.values())
    top = stats.top_tokens()

    def text(number: int) -> str:
        return _visible(atlas.texts[number]) if number in atlas.texts else f"‹{number}›"

    if total > 0:
        drawn_rows = [(text(number), n * mean / total) for number, n, mean, _ in top[:_TOKENS_DRAWN]]
        section.figure = drawn(figures.top_tokens(drawn_rows, measure), size=(5.6, 0.9 + 0.24 * len(drawn_rows)))
        section.alt = f"tokens by their share of all {measure}; the table below has the numbers"
    section.says.append(f"Of {part.label}. ␣ and ↵ stand for what cannot be seen.")
    if any(number not in atlas.texts for number, *_ in top):
        section.says.append("‹n› is a token id: no run here told its text; a divergence run over the same texts does.")
    table = Table(["token", "id", "how often", f"mean {measure}", "largest", "share of all"])
    table.rows = [
        [text(number), number, n, mean, most, n * mean / total if total else None] for number, n, mean, most in top
    ]
    section.tables.append(("tokens", f"The {len(top)} tokens with the largest sums of {measure}.", table))
    places = Table(["problem", "sample", "position", measure, "after", "token"])
    places.rows = [
        [each.id, each.sample, each.position, each.value, plain(each.before), _visible(each.token)]
        for each in stats.top_places()
    ]
    section.tables.append(("places", f"The {len(places.rows)} places with the largest {measure}.", places))
    return section


def _visible(token: str) -> str:
    """A token's text, with the spaces at its ends."""
    inside = token.strip(" ")
    ends = len(token) - len(token.lstrip(" ")) if inside else len(token)
    return plain("␣" * ends + inside + "␣" * (len(token) - ends - len(inside))) or "∅"


def run_lengths(atlas: Atlas) -> Section:
    """How long B leads once it does."""
    section = Section("run-lengths", "How long B leads in a row")
    parts = [part for part in atlas.runs.of("switched", "control") if atlas.stats[part.label].runs["b"]]
    if not parts:
        section.missing = "No switched run here has a token of B's."
        return section
    series = [(part.label, atlas.stats[part.label].runs["b"]) for part in parts]
    shown = series[:SERIES_SHOWN]
    if len(series) > len(shown):
        section.says.append(f"The figure shows {len(shown)} of {len(series)} conditions; the table has all.")
    section.figure = drawn(figures.run_lengths(shown), size=(6.6, 4.2))
    section.alt = "share of B's runs that are at least so long; the table below has the numbers"
    table = Table(["condition", "model", "runs", "mean length", "median", "longest", "cut off by the end"])
    for part in parts:
        stats = atlas.stats[part.label]
        for lead in ("b", "a"):
            lengths = np.repeat(list(stats.runs[lead].keys()), list(stats.runs[lead].values()))
            if lengths.size:
                row = [float(lengths.mean()), float(np.median(lengths)), int(lengths.max())]
                table.rows.append(
                    [part.label, lead.upper(), int(lengths.size), *row, stats.cut if lead == "b" else None]
                )
    section.tables.append(("run-lengths", "Runs of tokens one model leads in a row.", table))
    return section
