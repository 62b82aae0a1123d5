"""The figures of results, and what all figures have in common: functions that draw on axes they are given.

No text of a run is read as markup. Colours are constants of `style`, which the page replaces by its own, so that a
figure follows a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from rl_onoff.metrics.bootstrap import Estimate
from rl_onoff.report.style import CONTROL, DASHES, INK, LINE, MARKERS, SERIES, A, B, plain

#: Draws on the axes of a figure, as many as were asked for.
Draw = Callable[[Sequence[Any]], None]
#: Series in one figure; tables have all.
SERIES_SHOWN = 4
#: Colours that are neither A's nor B's.
OTHERS = SERIES[2:]


@dataclass(frozen=True)
class Point:
    """A condition in the plane of accuracy and B's share."""

    number: int
    kind: str
    share: Estimate
    value: Estimate
    control: bool


def accuracy(panels: Mapping[str, list[Point]], a: Estimate | None, b: Estimate | None, metric: str) -> Draw:
    """One panel per direction: value against the share of B's tokens, intervals both ways."""

    def draw(axes: Sequence[Any]) -> None:
        for axis, (title, points) in zip(axes, panels.items(), strict=True):
            for name, reference, colour in (("A alone", a, A), ("B alone", b, B)):
                if reference is not None:
                    axis.axhspan(reference.low, reference.high, color=colour, alpha=0.12, linewidth=0)
                    axis.axhline(reference.value, color=colour, linestyle="--", linewidth=1.3, label=name)
            kinds = sorted({point.kind for point in points if not point.control})
            for kind in kinds:
                chosen = [point for point in points if point.kind == kind and not point.control]
                index = kinds.index(kind)
                _errors(axis, chosen, OTHERS[index % len(OTHERS)], MARKERS[index % len(MARKERS)], plain(kind))
            if controls := [point for point in points if point.control]:
                _errors(axis, controls, CONTROL, "s", "random control", hollow=True)
            _number(axis, points)
            shares = [end for point in points for end in (point.share.low, point.share.high)]
            room = max(0.004, 0.15 * (max(shares) - min(shares)))
            axis.set_xlim(max(0.0, min(shares) - room) * 100, min(1.0, max(shares) + room) * 100)
            axis.set_xlabel("tokens of B, %")
            axis.set_title(title, loc="left")
        axes[0].set_ylabel(plain(metric))
        ends = [end for each in panels.values() for p in each for end in (p.value.low, p.value.high)]
        ends += [end for each in (a, b) if each for end in (each.low, each.high)]
        room = max(0.03, 0.08 * (max(ends) - min(ends)))
        for axis in axes:
            axis.set_ylim(min(ends) - 2 * room, max(ends) + 2 * room)
        legend(axes)

    return draw


def _errors(axis: Any, points: list[Point], colour: str, marker: str, label: str, *, hollow: bool = False) -> None:
    points = sorted(points, key=lambda point: point.share.value)
    x, y = ([getattr(point, name).value for point in points] for name in ("share", "value"))
    spans = [
        np.array([[e.value - e.low for e in each], [e.high - e.value for e in each]]).clip(0)
        for each in ([point.share for point in points], [point.value for point in points])
    ]
    axis.errorbar(
        [100 * each for each in x],
        y,
        xerr=100 * spans[0],
        yerr=spans[1],
        color=colour,
        marker=marker,
        markerfacecolor="none" if hollow else colour,
        linestyle="none" if hollow else "-",
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        markersize=5.5,
        label=label,
    )


def _number(axis: Any, points: list[Point]) -> None:
    """Numbers of the table's lines: over the intervals of policies, under those of controls, neighbours in turns."""
    for control in (False, True):
        chosen = sorted((p for p in points if p.control is control), key=lambda point: point.share.value)
        for turn, point in enumerate(chosen):
            place = (100 * point.share.value, point.value.low if control else point.value.high)
            offset = (0, -(13, 23)[turn % 2] if control else (4, 14)[turn % 2])
            colour = CONTROL if control else INK
            axis.annotate(
                str(point.number),
                place,
                offset,
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
                bbox={"facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
            )


def pass_at_k(series: Sequence[tuple[str, str, dict[int, Estimate]]]) -> Draw:
    """pass@k of each part, by its role's colour; intervals over problems."""

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        others = cycle(OTHERS)
        for index, (label, role, found) in enumerate(series):
            ks = list(found)
            colour = {"a": A, "b": B}.get(role) or next(others)
            middle = [found[k].value for k in ks]
            spans = [[found[k].value - found[k].low for k in ks], [found[k].high - found[k].value for k in ks]]
            shifted = [k * (1 + 0.012 * (index - (len(series) - 1) / 2)) for k in ks]
            axis.errorbar(
                shifted, middle, yerr=np.clip(spans, 0, None), color=colour, marker=MARKERS[index % len(MARKERS)],
                linestyle=DASHES[index % len(DASHES)], linewidth=1.4, elinewidth=0.9, capsize=2, markersize=5,
                label=plain(label),
            )  # fmt: skip
        ks = sorted({k for _, _, found in series for k in found})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.minorticks_off()
        axis.set_xlabel("k")
        axis.set_ylabel("pass@k")
        axis.set_ylim(-0.03, 1.03)
        legend(axes)

    return draw


def legend(axes: Sequence[Any]) -> None:
    """Under the figure, where it can hide nothing."""
    handles, labels = [], []
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    columns = 1 if max(map(len, labels), default=0) > 32 else 2 if max(map(len, labels), default=0) > 18 else 4
    axes[0].figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False, edgecolor=LINE, labelcolor=INK
    )
