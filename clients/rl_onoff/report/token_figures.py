"""The figures of tokens: histograms, means in bins, shares, lengths of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_onoff.report.figures import OTHERS, Draw, legend
from rl_onoff.report.style import DASHES, INK, MARKERS, SERIES, A, B, plain
from rl_onoff.report.tokens import EDGES, ENTROPIES, POSITIONS, SHIFTS, Array, Histogram, Means, TokenStats


def divergences(series: Sequence[tuple[str, Histogram, Mapping[str, float]]], unit: str) -> Draw:
    """The share of tokens in each bin of a log axis, a row per series; the first bin holds all below the axis.

    A series is its label, its values, and noise floors by what they are of.
    """

    def draw(axes: Sequence[Any]) -> None:
        rows = [histogram.counts for _, histogram, _ in series]
        used = np.flatnonzero(np.sum(rows, axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, len(EDGES) - 1)
        if any(histogram.below for _, histogram, _ in series):
            low = 0
        for value in (value for _, _, floors in series for value in floors.values()):
            low = min(low, max(0, int(np.searchsorted(EDGES, value)) - 2))
        for index, (axis, (label, histogram, floors)) in enumerate(zip(axes, series, strict=True)):
            found = histogram.counts.astype(np.float64)
            found[0] += histogram.below
            shares = 100 * found / max(1, histogram.total)
            axis.stairs(shares, EDGES, color=_colour(label, index), fill=True, alpha=0.75, linewidth=0)
            for turn, (name, value) in enumerate(floors.items()):
                dash = DASHES[(turn + 1) % len(DASHES)]
                axis.axvline(value, color=INK, linestyle=dash, linewidth=1.2, label=f"noise floor: {plain(name)}")
            axis.set_xscale("log")
            axis.set_yscale("log")
            least = shares[shares > 0].min(initial=1.0)
            axis.set_ylim(least / 2, 100)
            axis.set_xlim(EDGES[low], EDGES[high])
            for each in (axis.xaxis, axis.yaxis):
                each.set_major_formatter(_power)
            axis.minorticks_off()
            axis.set_title(plain(label), loc="left")
            axis.set_ylabel("tokens, %")
            axis.tick_params(labelbottom=axis is axes[-1])
        axes[-1].set_xlabel(f"divergence, {unit}{'; the first bin also holds all below' if low == 0 else ''}")
        legend(axes)

    return draw


def _power(value: float, place: int | None = None) -> str:
    """A power of ten, without markup."""
    exponent = round(math.log10(value)) if value > 0 else 0
    if exponent in (0, 1, 2):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def by_position(series: Sequence[tuple[str, Means]], measure: str) -> Draw:
    """Mean divergence by place in the text, a band of 1.96 standard errors, texts being the clusters."""

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        middle = (np.arange(POSITIONS) + 0.5) * 100 / POSITIONS
        for index, (label, means) in enumerate(series):
            _band(axis, middle, means, index, label)
        axis.set_xlim(0, 100)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("place in the text, % of its tokens")
        axis.set_ylabel(f"mean {plain(measure)}")
        legend(axes)

    return draw


def by_entropy(stats: TokenStats, measure: str, unit: str) -> Draw:
    """Every token of one part by A's entropy and divergence (shade: log of the count), and the mean by entropy."""

    def draw(axes: Sequence[Any]) -> None:
        left, right = axes
        used = np.flatnonzero(stats.plane.sum(1))
        end = min(len(ENTROPIES) - 1, int(used[-1]) + 1 if used.size else 1)
        filled = np.flatnonzero(stats.plane.sum(0))
        low, high = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 1)
        most = math.log1p(float(stats.plane.max())) or 1.0
        columns, rows = np.nonzero(stats.plane)
        shades = 0.12 + 0.88 * np.log1p(stats.plane[columns, rows]) / most
        colours = [(A, round(float(shade), 2)) for shade in shades]
        widths, heights = ENTROPIES[columns + 1] - ENTROPIES[columns], EDGES[rows + 1] - EDGES[rows]
        left.bar(ENTROPIES[columns], heights, widths, EDGES[rows], align="edge", color=colours, linewidth=0)
        left.set_yscale("log")
        left.set_xlim(0, ENTROPIES[end])
        left.set_ylim(EDGES[low], EDGES[high])
        left.yaxis.set_major_formatter(_power)
        left.minorticks_off()
        left.set_ylabel(f"{plain(measure)}, {unit}")
        left.set_title("tokens (darker: more)", loc="left")
        middle = (ENTROPIES[:-1] + ENTROPIES[1:]) / 2
        _band(right, middle, stats.by_entropy, 1, "mean")
        right.set_xlim(0, ENTROPIES[end])
        right.set_ylim(bottom=0)
        right.set_ylabel(f"mean {plain(measure)}, {unit}")
        right.set_title("mean, with its interval", loc="left")
        for axis in axes:
            axis.set_xlabel(f"entropy of A, {unit}")

    return draw


def _colour(label: str, index: int) -> str:
    """A and B alone in the colours they have in every figure."""
    return {"A alone": A, "B alone": B}.get(label[:7]) or OTHERS[index % len(OTHERS)]


def _band(axis: Any, x: Array, means: Means, index: int, label: str) -> None:
    value, error = means.mean(), 1.96 * means.stderr()
    known = np.isfinite(error) if np.isfinite(error).any() else np.isfinite(value)
    error = np.nan_to_num(error)
    colour = _colour(label, index)
    axis.plot(
        x[known], value[known], color=colour, marker=MARKERS[index % len(MARKERS)], markersize=3.5, linewidth=1.4,
        linestyle=DASHES[index % len(DASHES)], label=plain(label),
    )  # fmt: skip
    lower = np.maximum(value - error, 0)
    axis.fill_between(x[known], lower[known], (value + error)[known], color=colour, alpha=0.15, linewidth=0)


def shifts(series: Sequence[tuple[str, Means]]) -> Draw:
    """Shares of tokens by where B's most likely token stands in A's order."""

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        places = np.arange(len(series))[::-1]
        left = np.zeros(len(series))
        for index, name in enumerate(SHIFTS):
            found = np.array([100 * means.mean()[index] for _, means in series])
            colour = (A, SERIES[2], B)[index]
            axis.barh(places, found, left=left, color=colour, alpha=(0.45, 0.75, 1.0)[index], label=name, height=0.6)
            left += found
        axis.set_yticks(places, [plain(label) for label, _ in series])
        axis.set_xlim(0, 100)
        axis.set_xlabel("tokens, %")
        legend(axes)

    return draw


def top_tokens(rows: Sequence[tuple[str, float]], measure: str) -> Draw:
    """The tokens that have most of the divergence, and how much of all."""

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        places = np.arange(len(rows))[::-1]
        axis.barh(places, [100 * share for _, share in rows], color=SERIES[0], height=0.65)
        axis.set_yticks(places, [plain(text) for text, _ in rows])
        axis.set_xlabel(f"share of all {plain(measure)}, %")

    return draw


def run_lengths(series: Sequence[tuple[str, Mapping[int, int]]]) -> Draw:
    """The share of B's runs that are at least so long, from 1, which all are, to the first length that none has."""

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        longest = max(max(lengths) for _, lengths in series)
        for index, (label, lengths) in enumerate(series):
            total = left = sum(lengths.values())
            x, y = [1], [100.0]
            for length, count in sorted(lengths.items()):
                left -= count
                x.append(length + 1)
                y.append(100 * left / total)
            axis.plot(
                x, y, color=_colour(label, index), marker=MARKERS[index % len(MARKERS)], markersize=4,
                linestyle=DASHES[index % len(DASHES)], linewidth=1.4, label=plain(label), drawstyle="steps-post",
            )  # fmt: skip
        if longest > 40:
            axis.set_xscale("log", base=2)
            ticks = [2**power for power in range(longest.bit_length() + 1)]
        else:
            ticks = list(range(1, longest + 2, 1 + longest // 12))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(-3, 104)
        axis.set_xlabel("tokens B leads in a row")
        axis.set_ylabel("runs at least so long, %")
        legend(axes)

    return draw
