"""Figures of a report's sections, by matplotlib: the same bytes for the same rows."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from rl_onoff.errors import MissingDependency
from rl_onoff.report.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

A, B, POLICY, CONTROL, INK = "#1261b0", "#b5420b", "#5b2a86", "#8a8d94", "#1b1d21"
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "rl-onoff",  # ids in the file hang on this alone
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6c7380",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e9e6df",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def drawn(section: Section, *, mark: float | None = None) -> tuple[bytes, bytes]:
    """A section as (SVG, PNG). `mark`: a value to draw a line at, the noise floor of the histogram."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency.of("matplotlib", "report", "drawing figures") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        _DRAW[section.name](figure.subplots(), section, mark)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _pareto(axes: Axes, section: Section, _: float | None) -> None:
    points: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for _name, role, direction, *numbers in section.rows:
        number = tuple(map(float, numbers))  # type: ignore[arg-type]
        if role in ("a_alone", "b_alone"):
            colour, name = (A, "A alone") if role == "a_alone" else (B, "B alone")
            axes.axhspan(number[2], number[3], color=colour, alpha=0.08, lw=0)
            axes.axhline(number[1], color=colour, lw=1.2, label=name)
        else:
            points.setdefault((str(direction), str(role)), []).append(number)
    shape = {"a_to_b": "o", "b_to_a": "s"}
    for (direction, role), found in points.items():
        found.sort()
        x, y, low, high = zip(*found, strict=True)
        control = role == "control"
        colour = CONTROL if control else POLICY
        name = f"{'random control' if control else 'policy'}{', A takes over from B' if direction == 'b_to_a' else ''}"
        bars = [[v - lo for v, lo in zip(y, low, strict=True)], [hi - v for v, hi in zip(y, high, strict=True)]]
        axes.errorbar(
            [100 * each for each in x],
            y,
            yerr=bars,
            color=colour,
            marker=shape.get(direction, "o"),
            mfc="white" if control else colour,
            ms=6,
            lw=0 if len(x) < 2 else 1,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    axes.set(xlabel="tokens taken over, %", ylabel=section.title.split(" against")[0], ylim=(-0.03, None))
    axes.set_xlim(left=0)
    _legend(axes)


def _histogram(axes: Axes, section: Section, floor: float | None) -> None:
    rows = [tuple(map(float, row)) for row in section.rows if math.isfinite(float(row[0]))]  # type: ignore[arg-type]
    least = rows[0][1]
    left = [row[0] or least / 10**0.25 for row in rows]
    axes.bar(
        left,
        [row[2] for row in rows],
        width=[row[1] - at for row, at in zip(rows, left, strict=True)],
        align="edge",
        color=[CONTROL, *[POLICY] * (len(rows) - 1)],
        edgecolor="white",
        lw=0.6,
    )
    if floor:
        axes.axvline(floor, color=INK, lw=1, ls="--")
        axes.annotate(
            "noise floor", (floor, 1), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points"
        )
    axes.set(xscale="log", yscale="log", xlabel=section.title.split(": ")[1].split(" of ")[0], ylabel="tokens")
    axes.set_ylim(bottom=0.8)


def _position(axes: Axes, section: Section, _: float | None) -> None:
    middle = [(float(row[0]) + float(row[1])) / 2 for row in section.rows]  # type: ignore[arg-type]
    mean = [float(row[3]) for row in section.rows]  # type: ignore[arg-type]
    error = [2 * float(row[4] or 0.0) for row in section.rows]
    low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(middle, low, high, color=POLICY, alpha=0.18, lw=0)
    axes.plot(middle, mean, color=POLICY, marker="o", ms=3)
    axes.set(xlabel="position in the text, from 0 to 1", ylabel="mean", xlim=(0, 1), ylim=(0, None))


def _entropy(axes: Axes, section: Section, _: float | None) -> None:
    names = [f"{row[0]:g}–{row[1]:g}" if row[1] != math.inf else f"≥ {row[0]:g}" for row in section.rows]
    mean = [float(row[3]) for row in section.rows]  # type: ignore[arg-type]
    error = [2 * float(row[4] or 0.0) for row in section.rows]
    axes.bar(range(len(names)), mean, yerr=error, color=POLICY, error_kw={"elinewidth": 1, "capsize": 2})
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(xlabel="entropy of A, nats", ylabel="mean", ylim=(0, None))


def _shifts(axes: Axes, section: Section, _: float | None) -> None:
    shares = [100 * float(row[1]) for row in section.rows]  # type: ignore[arg-type]
    bars = axes.barh([str(row[0]) for row in section.rows], shares, color=["#c9ccd2", "#a884c9", POLICY])
    axes.bar_label(bars, [f"{share:.2f}%" for share in shares], padding=4)
    axes.set(xlabel="tokens, %", xlim=(0, max(shares) * 1.15))
    axes.invert_yaxis()


def _run_lengths(axes: Axes, section: Section, _: float | None) -> None:
    for lead, colour, marker in (("A", A, "o"), ("B", B, "s")):
        found = [(int(row[1]), int(row[2])) for row in section.rows if row[0] == lead]  # type: ignore[arg-type]
        axes.plot(*zip(*found, strict=True), color=colour, marker=marker, ms=5, lw=0, label=f"{lead} leads")
    axes.set(xscale="log", yscale="log", xlabel="tokens in a row", ylabel="runs")
    _legend(axes)


def _pass_at_k(axes: Axes, section: Section, _: float | None) -> None:
    curves: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for name, role, *numbers in section.rows:
        curves.setdefault((str(name), str(role)), []).append(tuple(map(float, numbers)))  # type: ignore[arg-type]
    policies = [name for name, role in curves if role == "policy"]
    for (name, role), found in curves.items():
        k, value, low, high = zip(*sorted(found), strict=True)
        fixed = {"a_alone": A, "b_alone": B}
        shade = 0.35 + 0.65 * (policies.index(name) + 1) / len(policies) if role == "policy" else 1.0
        colour = fixed.get(role, POLICY)
        axes.fill_between(k, low, high, color=colour, alpha=0.08, lw=0)
        axes.plot(k, value, color=colour, alpha=shade, marker="o", ms=4, label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({int(row[2]) for row in section.rows})  # type: ignore[arg-type]
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(xlabel="k", ylabel="pass@k", ylim=(None, 1.02))
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Beside the axes: whatever the data are, it covers none."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)


_DRAW: Final[Mapping[str, Callable[[Any, Section, float | None], None]]] = {
    "pareto": _pareto,
    "histogram": _histogram,
    "position": _position,
    "entropy": _entropy,
    "shifts": _shifts,
    "run_lengths": _run_lengths,
    "pass_at_k": _pass_at_k,
}
