"""The page: one file, no script, no address of anything outside it. All that comes from a run is escaped here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any, Final

from rl_onoff.report.style import Drawing, inline
from rl_onoff.report.tables import Table

#: No script runs, nothing is fetched, whatever a run's texts hold.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass
class Section:
    """A heading of the report. `figure` may be missing, with `missing` saying why; `tables`: name, caption, table."""

    name: str
    title: str
    says: list[str] = field(default_factory=list)
    figure: Drawing | None = None
    alt: str = ""
    tables: list[tuple[str, str, Table]] = field(default_factory=list)
    missing: str | None = None
    html: str = ""


def page(
    title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str], sections: Sequence[Section], data: Any
) -> str:
    """The whole document. `data`: records, as JSON in a script element that no browser runs."""
    style = resources.files("rl_onoff.report").joinpath("page.css").read_text(encoding="utf-8")
    index = "".join(f'<li><a href="#{each.name}">{escape(each.title)}</a></li>' for each in sections)
    told = "".join(f"<p><strong>Note:</strong> {escape(note)}</p>" for note in notes)
    made = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    body = "".join(map(_section, sections))
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – rl-onoff report</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1>{told}<nav aria-label="Contents"><ul>{index}</ul></nav></header>'
        f'<main>{body}<section id="runs"><h2>Runs</h2><dl>{made}</dl></section></main>'
        f'<script type="application/json" id="records">{embedded(data)}</script></body></html>\n'
    )
    return document.encode("utf-8", "backslashreplace").decode()  # a lone surrogate of a token is no UTF-8


def embedded(data: Any) -> str:
    """JSON that neither ends a script element nor begins a comment in it, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}"><h2>{escape(section.title)}</h2>']
    parts += [f"<p>{escape(each)}</p>" for each in section.says]
    if section.missing:
        parts.append(f'<p class="muted">{escape(section.missing)}</p>')
    if section.figure is not None:
        parts.append(f'<figure tabindex="0">{inline(section.figure.svg, section.name, section.alt)}</figure>')
    parts += [table.html(caption, f"tables/{name}.csv") for name, caption, table in section.tables]
    parts.append(f"{section.html}</section>")
    return "".join(parts)
