"""Texts of a few problems, token by token: who led, and how far apart the models were."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from rl_onoff.report.reading import Part, Record
from rl_onoff.report.tables import shown
from rl_onoff.report.tokens import columns, main_measure

#: Tokens of one text that are drawn, and texts of one problem and part.
TOKENS_SHOWN: Final = 1500
SAMPLES_SHOWN: Final = 4
_LEVELS: Final = 12
_LN2: Final = math.log(2.0)
#: What of a record the page's Runs view reads.
_FIELDS: Final = (
    "id", "sample", "prompt", "messages", "prompt_ids", "reference", "text", "token_ids", "tokens", "leads",
    "b_fraction", "measure", "divergences", "signals", "values", "switches", "finish_reason", "seed", "metrics",
)  # fmt: skip


@dataclass
class Problems:
    """The chosen problems' records: `records[problem]`, each with the label of its part as `condition`."""

    chosen: list[str]
    records: dict[str, list[Record]] = field(default_factory=dict)
    left_out: int = 0


def collect(chosen: Iterable[str], parts: Iterable[Part], texts: Mapping[int, str]) -> Problems:
    """Read the parts once more and keep the records of these problems, with the texts of their tokens if known."""
    found = Problems(list(dict.fromkeys(chosen)))
    wanted = set(found.chosen)
    for part in parts:
        kept: dict[str, list[tuple[tuple[int, int], Record]]] = {}
        for seed, record in part.records():
            problem = problem_of(part, record)
            if problem in wanted:
                kept.setdefault(problem, []).append(
                    ((seed, int(record.get("sample") or 0)), _lean(record, part, texts))
                )
        for problem, rows in kept.items():
            rows.sort(key=lambda row: (row[0], str(row[1]["id"])))
            found.left_out += len(rows[SAMPLES_SHOWN:])
            found.records.setdefault(problem, []).extend(record for _, record in rows[:SAMPLES_SHOWN])
    return found


def problem_of(part: Part, record: Mapping[str, Any]) -> str:
    """The problem of a record; a divergence over the samples of a run has ids such as `7#0`."""
    name = str(record["id"])
    head, mark, tail = name.rpartition("#")
    return head if part.role == "divergence" and mark and tail.isdecimal() else name


def _lean(record: Record, part: Part, texts: Mapping[int, str]) -> Record:
    lean = {name: record[name] for name in _FIELDS if record.get(name) is not None} | {"condition": part.label}
    ids = record.get("token_ids") or []
    if "tokens" not in lean and ids and all(number in texts for number in ids):
        tokens = [texts[number] for number in ids]
        if "".join(tokens) == record.get("text"):  # else the pieces of a character lie in several tokens
            lean["tokens"] = tokens
    return lean


def anchor(problem: str) -> str:
    """The id of a problem's element: the same for the same problem, and harmless whatever the problem is called."""
    return f"problem-{hashlib.sha256(problem.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def html(problems: Problems) -> str:
    """One `<details>` per problem."""
    return "".join(_problem(problem, problems.records.get(problem, [])) for problem in problems.chosen)


def _problem(problem: str, records: Sequence[Record]) -> str:
    prompt = next((text for record in records if (text := _prompt(record))), "")
    reference = next((str(each["reference"]) for each in records if "reference" in each), None)
    head = f"<summary><strong>{escape(problem)}</strong> {escape(prompt[:160])}</summary>"
    facts = f'<p class="muted">Reference: {escape(reference)}</p>' if reference is not None else ""
    return f'<details id="{anchor(problem)}">{head}{facts}{"".join(map(_text, records))}</details>'


def _prompt(record: Record) -> str:
    if isinstance(record.get("prompt"), str):
        return str(record["prompt"])
    messages = record.get("messages") or []
    return str(messages[-1].get("content", "")) if messages and isinstance(messages[-1], Mapping) else ""


def _text(record: Record) -> str:
    values = columns(record)
    measure = main_measure(values) or next(iter(values), None)
    facts = [f"{name} {shown(value)}" for name, value in (record.get("metrics") or {}).items()]
    leads = str(record.get("leads") or "")
    if leads:
        facts.append(f"B wrote {100 * leads.count('b') / len(leads):.3g}%")
    if measure is not None:
        facts.append(f"shaded by {measure}")
    sample = record.get("sample") or 0
    head = f"{record['condition']}{f', sample {sample}' if sample else ''}"
    return (
        f'<h3>{escape(head)} <span class="muted">{escape("; ".join(facts))}</span></h3>'
        f'<p class="tokens">{_tokens(record, leads, measure, values)}</p>'
    )


def _tokens(record: Record, leads: str, measure: str | None, values: Mapping[str, Any]) -> str:
    ids, tokens = record.get("token_ids") or [], record.get("tokens")
    if tokens is None:
        if not leads and measure is None:
            return escape(str(record.get("text") or ""))
        tokens = [f"‹{number}›" for number in ids]
    column = values[measure] if measure is not None and len(values[measure]) == len(tokens) else None
    drawn = []
    for index, token in enumerate(tokens[:TOKENS_SHOWN]):
        lead = leads[index] if len(leads) == len(tokens) else ""
        classes = [name for name in (lead if lead in ("a", "b") else "",) if name]
        about = [f"{lead.upper()} leads"] if classes else []
        if column is not None and measure is not None:
            value = float(column[index])
            classes.append(f"l{_level(measure, value)}")
            about.append(f"{measure} {shown(value)}")
        about.append(f"token {index}")
        attributes = f' class="{" ".join(classes)}"' if classes else ""
        drawn.append(f'<span{attributes} title="{escape(", ".join(about), quote=True)}">{escape(str(token))}</span>')
    rest = len(tokens) - TOKENS_SHOWN
    return "".join(drawn) + (f' <em class="muted">… {rest} tokens more</em>' if rest > 0 else "")


def _level(measure: str, value: float) -> int:
    """As the page shades: by square roots, so that small divergences can be seen at all."""
    if not math.isfinite(value):
        return _LEVELS
    if measure == "js":
        return round(_LEVELS * math.sqrt(min(max(value, 0.0) / _LN2, 1.0)))
    if measure in ("tv", "hellinger"):
        return round(_LEVELS * min(max(value, 0.0), 1.0))
    return round(_LEVELS * math.sqrt(1 - math.exp(-abs(value))))
