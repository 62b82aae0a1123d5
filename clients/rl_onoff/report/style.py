"""Colours, and matplotlib's part: a drawn figure as PNG, as SVG, and as an element of a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final
from xml.etree import ElementTree

from rl_onoff.errors import MissingDependency

# The page's own colours (app/web/base.css), light.
INK: Final = "#1b1d21"
MUTED: Final = "#585c64"
LINE: Final = "#d9d5cc"
CONTROL: Final = "#6f747c"
A: Final = "#1261b0"
B: Final = "#b5420b"
SERIES: Final = (A, B, "#7a2bbf", "#1d7a3e", "#0b7a86", "#a3307a")
MARKERS: Final = ("o", "^", "D", "v", "P", "X")
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
#: What a colour of a figure is called in the page, which has a light and a dark one of each.
VARIABLES: Final = {
    "#ffffff": "--card", INK: "--ink", MUTED: "--muted", LINE: "--line", CONTROL: "--control",
    **{colour: f"--s{index}" for index, colour in enumerate(SERIES)},
}  # fmt: skip

_SVG: Final = "http://www.w3.org/2000/svg"
#: All that matplotlib draws with.
_ELEMENTS: Final = frozenset(
    ("svg", "g", "path", "defs", "use", "text", "tspan", "clipPath", "rect", "circle", "ellipse", "line", "polygon")
)
_URL: Final = re.compile(r"url\(#([^)]+)\)")
_SETTINGS: Final[dict[str, Any]] = {
    "svg.hashsalt": "rl-onoff",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a token may hold dollars
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "path.simplify": False,
    "figure.dpi": 72,
}


@dataclass(frozen=True)
class Drawing:
    """A figure as the bytes of two files."""

    png: bytes
    svg: bytes


def drawn(
    draw: Callable[[Sequence[Any]], None],
    *,
    size: tuple[float, float],
    columns: int = 1,
    rows: int = 1,
    share_y: bool = False,
) -> Drawing:
    """Make a figure of `rows` x `columns` axes, `size` in inches. The same input gives the same bytes.

    Raises MissingDependency where matplotlib is not installed.
    """
    try:
        matplotlib = import_module("matplotlib")
        figures = import_module("matplotlib.figure")
        import_module("matplotlib.backends.backend_svg")
        import_module("matplotlib.backends.backend_agg")
    except ModuleNotFoundError as error:
        raise MissingDependency.of("matplotlib", "report", "drawing a report") from error
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **_SETTINGS}):
        figure = figures.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel()
        draw(list(axes))
        png, svg = io.BytesIO(), io.BytesIO()
        with warnings.catch_warnings():
            # A token's script may be in no font of this machine; the tables have it as it is.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
            figure.savefig(png, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return Drawing(png.getvalue(), svg.getvalue())


def plain(text: str, most: int = 48) -> str:
    """A text as a label: on one line, what cannot be seen made visible, cut where it is long."""
    shown = "".join(
        {"\n": "↵", "\t": "⇥", "\r": "␍"}.get(each, each if each.isprintable() else f"\\u{ord(each):04x}")
        for each in text
    )
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def inline(svg: bytes, name: str, title: str) -> str:
    """The figure as an element of an HTML page: nothing but shapes and text, ids its own, colours the page's.

    What matplotlib writes is trusted to be XML, not to be harmless: elements that do not draw, event handlers and links
    to anywhere but the figure itself are left out.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)  # noqa: S314 — matplotlib's, of this process
    _clean(root, name)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")  # of the style element, which has no bounds here
    root.set("role", "img")
    root.set("aria-label", title)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return text


def _clean(element: ElementTree.Element, name: str) -> None:
    for child in list(element):
        if str(child.tag).removeprefix(f"{{{_SVG}}}") not in _ELEMENTS:
            element.remove(child)
        else:
            _clean(child, name)
    for attribute, value in list(element.attrib.items()):
        local = attribute.rpartition("}")[2]
        if local.startswith("on") or (local == "href" and not value.startswith("#")):
            del element.attrib[attribute]
        elif local == "id":
            element.set(attribute, f"{name}-{value}")
        elif local == "href":
            element.set(attribute, f"#{name}-{value[1:]}")
        else:
            element.set(attribute, _URL.sub(lambda found: f"url(#{name}-{found[1]})", value))
