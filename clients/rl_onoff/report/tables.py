"""Tables: what a figure shows, as CSV and as HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

Cell = str | int | float | None
_SHOWN: Final = 200


@dataclass
class Table:
    """`columns` name each row's cells. `links`: where in the page a row's first cell leads, by the row's index."""

    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    links: dict[int, str] = field(default_factory=dict)

    def csv(self) -> str:
        """All rows, numbers in full; nothing stands for what is not defined.

        A text that a spreadsheet would take for a formula gets an apostrophe before it.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_exact(cell) for cell in row] for row in self.rows])
        return file.getvalue()

    def html(self, caption: str, csv_name: str, most: int = _SHOWN) -> str:
        """The first `most` rows; the caption says so where there are more."""
        more = len(self.rows) - most
        note = f" The first {most} of {len(self.rows)}; {escape(csv_name)} has all." if more > 0 else ""
        merged = {
            place for place, name in enumerate(self.columns) if list(self.columns[place + 1 :])[:2] == _ends(name)
        }
        hidden = {place + step for place in merged for step in (1, 2)}
        kept = [place for place in range(len(self.columns)) if place not in hidden]
        head = "".join(f'<th scope="col">{escape(self.columns[place])}</th>' for place in kept)
        body = "".join(self._row(index, row, kept, merged) for index, row in enumerate(self.rows[:most]))
        label = escape(caption, quote=True)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
            f"<caption>{escape(caption)}{note}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _row(self, index: int, row: Sequence[Cell], kept: Sequence[int], merged: Container[int]) -> str:
        cells = []
        for place in kept:
            cell = row[place]
            text = escape(shown(cell))
            if place in merged and cell is not None:
                text += f" [{escape(shown(row[place + 1]))}, {escape(shown(row[place + 2]))}]"
            if place == 0 and index in self.links:
                text = f'<a href="#{escape(self.links[index], quote=True)}">{text}</a>'
            if place == 0:
                cells.append(f'<th scope="row">{text}</th>')
            else:
                cells.append(f'<td class="n">{text}</td>' if isinstance(cell, int | float) else f"<td>{text}</td>")
        return f"<tr>{''.join(cells)}</tr>"


def _ends(name: str) -> list[str]:
    """The columns of an interval, which a page shows beside the value in one."""
    return [f"{name} low", f"{name} high"]


def shown(cell: Cell) -> str:
    """A cell as a person reads it: four digits."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, float):
        return "∞" if cell == math.inf else f"{cell:.4g}"
    return str(cell)


def _exact(cell: Cell) -> Any:
    if isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, str):
        cell = cell.encode("utf-8", "backslashreplace").decode()
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
    return cell
