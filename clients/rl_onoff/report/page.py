"""A report as one HTML file: no script runs, nothing is fetched, whatever stands in the results is text."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rl_onoff.report.atlas import columns_of
from rl_onoff.report.outcomes import Key
from rl_onoff.report.sections import Cell, Section

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#f7f5f0, #121418); --card: light-dark(#fff, #1a1d23);
  --ink: light-dark(#1b1d21, #e9e8e3); --muted: light-dark(#585c64, #a5aab4); --line: light-dark(#e2ded5, #2e333c);
  --a: light-dark(#1261b0, #79b4ff); --b: light-dark(#b5420b, #ff9a5f);
  --a-fill: light-dark(#4c9bef, #3b82d6); --b-fill: light-dark(#ff9a52, #d9641c); }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 1.45rem; } h2 { font-size: 1.08rem; margin: 0 0 .3rem; } h3 { font-size: .95rem; margin: 1rem 0 .2rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin: 1rem 0; overflow-x: auto; }
img { display: block; width: 100%; max-width: 52rem; background: #fff; border-radius: 6px; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { text-align: left; padding: .18rem .8rem .18rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } td.t { white-space: pre-wrap; font-family: ui-monospace, Menlo, Consolas, monospace; }
.muted, figcaption { color: var(--muted); font-size: .88rem; } summary { cursor: pointer; }
nav a { margin-right: .9rem; } a { color: inherit; } figure { margin: 0; }
.tokens { font: 13px/1.9 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; padding: .1rem 0; }
.tokens .a { background: color-mix(in srgb, var(--a-fill) var(--v), transparent); }
.tokens .b { background: color-mix(in srgb, var(--b-fill) var(--v), transparent); font-weight: 650;
  border-bottom: 2px solid var(--b); }
"""


@dataclass(frozen=True, slots=True)
class Text:
    """One problem under several conditions, as tokens. `records` are lines of results, by the condition's name."""

    key: Key
    verdict: str
    records: Mapping[str, Mapping[str, Any]]

    @property
    def anchor(self) -> str:
        """The name of its place on the page."""
        return "text-" + "-".join(f"{byte:02x}" for byte in self.key[0].encode()) + f"-{self.key[1]}"


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[tuple[Section, bytes | None]],
    texts: Sequence[Text],
    flipped: Mapping[str, Sequence[Key]],
) -> str:
    """The file. `sections` come with their SVG, where they are drawn; `flipped` are lists of keys by their heading."""
    anchors = {text.key: text.anchor for text in texts}
    body = [
        f"<h1>{escape(title)}</h1>",
        "<nav>"
        + "".join(f'<a href="#{section.name}">{escape(section.name.replace("_", " "))}</a>' for section, _ in sections)
        + ('<a href="#texts">texts</a>' if texts else "")
        + "</nav>",
        "<section><table>"
        + "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
        + "</table></section>",
    ]
    for section, svg in sections:
        body.append(_section(section, svg, flipped if section.name == "flips" else {}, anchors))
    if texts:
        body.append(_texts(texts))
    # What a browser shows and the service's page can open: no element ends in it, no comment begins.
    data = json.dumps({"results": [dict(r) for text in texts for r in text.records.values()]}, ensure_ascii=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + f'\n</main><script type="application/json">{data}</script>\n</body></html>\n'
    )


def _section(section: Section, svg: bytes | None, flipped: Mapping[str, Sequence[Key]], anchors: Any) -> str:
    parts = [f'<section id="{section.name}"><h2>{escape(section.title)}</h2>']
    if not section.rows:
        parts.append(f'<p class="muted">Not in these runs. {escape(section.missing)}</p></section>')
        return "".join(parts)
    table = "".join(_table(section))
    if svg is None:
        parts.append(f'<p class="muted">{escape(section.caption)}</p>{table}')
    else:
        source = base64.b64encode(svg).decode()
        alt = f"{section.title}. The numbers are in the table below."
        parts.append(
            f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{source}">'
            f"<figcaption>{escape(section.caption)}</figcaption></figure>"
            f"<details><summary>Table</summary>{table}</details>"
        )
    for heading, keys in flipped.items():
        links = [
            f'<a href="#{anchors[key]}">{escape(_named(key))}</a>' if key in anchors else escape(_named(key))
            for key in keys
        ]
        parts.append(f"<h3>{escape(heading)}: {len(keys)}</h3><p>{', '.join(links) or 'none'}</p>")
    return "".join(parts) + "</section>"


def _table(section: Section) -> Iterator[str]:
    numbers = [
        all(isinstance(row[at], int | float | None) for row in section.rows) for at in range(len(section.header))
    ]
    yield "<table><thead><tr>"
    for name, number in zip(section.header, numbers, strict=True):
        yield f'<th scope="col"{" class=n" if number else ""}>{escape(name)}</th>'
    yield "</tr></thead><tbody>"
    for row in section.rows:
        cells = zip(row, numbers, section.header, strict=True)
        yield "<tr>" + "".join(_cell(value, number, name) for value, number, name in cells) + "</tr>"
    yield "</tbody></table>"


def _cell(value: Cell, number: bool, name: str) -> str:
    kind = " class=n" if number else " class=t" if name in ("token", "before") else ""
    if not isinstance(value, str):
        return f"<td{kind}>{shown(value)}</td>"
    return f"<td{kind}>{escape(visible(value) if name == 'token' else value.replace(chr(10), '↵'))}</td>"


def shown(value: float | None) -> str:
    """A number as text."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return "∞" if value == math.inf else f"{value:.4g}"


def visible(text: str) -> str:
    """A token in which spaces at the ends and line breaks can be seen."""
    return text.replace("\n", "↵").replace(" ", "␣") if text.strip() == "" or text != text.strip() else text


def _named(key: Key) -> str:
    return f"{key[0]}#{key[1]}" if key[1] else key[0]


def _texts(texts: Sequence[Text]) -> str:
    parts = [
        '<section id="texts"><h2>Texts</h2><p class="muted">A\'s tokens on blue, B\'s bold on orange, the deeper the '
        "further apart the models were. Point at a token for its value.</p>"
    ]
    for text in texts:
        parts.append(
            f'<details id="{text.anchor}"><summary>{escape(_named(text.key))}: {escape(text.verdict)}</summary>'
        )
        first = next(iter(text.records.values()))
        if isinstance(first.get("prompt"), str):
            parts.append(f'<p class="tokens">{escape(first["prompt"])}</p>')
        if first.get("reference") is not None:
            parts.append(f'<p class="muted">Reference: {escape(str(first["reference"]))}</p>')
        for name, record in text.records.items():
            parts.append(f'<h3>{escape(name)}</h3><p class="tokens">{"".join(_tokens(record))}</p>')
        parts.append("</details>")
    return "".join(parts) + "</section>"


def _tokens(record: Mapping[str, Any]) -> Iterator[str]:
    texts = record.get("tokens") or []
    if not texts:
        yield escape(str(record.get("text", "")))
        return
    columns = columns_of(record)
    measure = str(record.get("measure", next(iter(columns), "js")))
    values = columns.get(measure, [0.0] * len(texts))
    leads = str(record.get("leads") or "a" * len(texts))
    for text, value, lead in zip(texts, values, leads, strict=True):
        hint = f"{lead.upper()}, {measure} {'∞' if value is None else f'{value:.4g}'}"
        mark = "↵\n" if text == "\n" else text
        yield (
            f'<span class="{"b" if lead == "b" else "a"}" style="--v:{round(100 * _depth(measure, value))}%" '
            f'title="{escape(hint)}">{escape(mark)}</span>'
        )


def _depth(measure: str, value: float | None) -> float:
    """0 to 1, as the service's page shades tokens (app/web/format.js)."""
    if value is None:
        return 1.0
    if measure == "js":
        return math.sqrt(max(0.0, min(value / math.log(2), 1.0)))
    if measure.startswith(("tv", "hellinger")):
        return value
    return math.sqrt(1 - math.exp(-abs(value)))
