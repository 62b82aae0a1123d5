"""A report of finished runs: read once for numbers, once more for the texts of a few problems, then written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rl_onoff.errors import DataError
from rl_onoff.report import atlas, heatmaps, results
from rl_onoff.report.outcomes import Outcomes, natural
from rl_onoff.report.page import Section, page
from rl_onoff.report.reading import Part, Runs, read_runs
from rl_onoff.report.tokens import TokenStats, with_text

#: Problems whose texts are in the page.
TEXTS: Final = 20
REPORT: Final = "report.html"


@dataclass(frozen=True)
class Report:
    """What a report holds: the document, and files beside it by name. `write` puts them in a folder."""

    html: str
    files: dict[str, bytes]

    def write(self, output: str | Path) -> Path:
        """Write all files; the path of the page. What was there by these names is replaced. Raises OSError."""
        folder = Path(output)
        for name, content in {**self.files, REPORT: self.html.encode()}.items():
            temporary = folder / f"{name}.tmp"
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)
        return folder / REPORT


def write(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    condition: str | None = None,
    metric: str | None = None,
    texts: int = TEXTS,
) -> Path:
    """`make_report`, written to a folder; the path of `report.html` in it."""
    return make_report(paths, condition=condition, metric=metric, texts=texts).write(output)


def make_report(
    paths: Sequence[str | Path], *, condition: str | None = None, metric: str | None = None, texts: int = TEXTS
) -> Report:
    """The report of these run folders together: of `sample`, `switch`, `divergence`, `sweep`, in any mixture.

    `condition`, a folder's name or a label: what flips, texts and figures of single tokens are of (default: the
    switched condition that is most often right, and for tokens the divergence runs). `metric`: the one that comes
    first, and that problems are judged by where it is right or wrong. `texts`: problems whose texts are in the page,
    token by token; those that switching changed come first. Rows are read as a stream: what is kept are sums, a
    histogram per measure, a few numbers per problem and per token of the vocabulary, and the texts of the problems
    shown. The same runs give the same bytes.

    Raises DataError for a folder that is no run, one without any result, and a condition or metric that is not there;
    MissingDependency without matplotlib.
    """
    if texts < 0:
        raise ValueError("texts must not be negative")
    runs = read_runs(paths)
    outcomes, stats = _read(runs)
    scored = results.Results(runs, outcomes, metric, condition)
    if metric is not None and metric not in (known := scored.metrics()):
        raise DataError(f"there is no metric {metric!r} in these runs; there are {', '.join(known) or 'none'}")
    tokens = atlas.Atlas(runs, stats, with_text(iter(stats.values())), condition)
    shown = _texts(runs, scored, tokens, texts)
    sections = [
        *results.accuracy(scored),
        results.pass_at_k(scored),
        results.flip_table(scored, shown.records)[0],
        *(
            make(tokens)
            for make in (
                atlas.histogram, atlas.positions, atlas.entropy, atlas.shifted, atlas.top_tokens, atlas.run_lengths,
            )
        ),
        _problems(shown, texts),
    ]  # fmt: skip
    data = [record for problem in shown.chosen for record in shown.records.get(problem, [])]
    return Report(page(runs.title, runs.facts, runs.notes, sections, data), _files(sections))


def _read(runs: Runs) -> tuple[dict[str, Outcomes], dict[str, TokenStats]]:
    outcomes, stats = {}, {}
    for part in runs.parts:
        outcomes[part.label], stats[part.label] = Outcomes(), TokenStats()
        for seed, record in part.records():
            if part.role != "divergence":
                outcomes[part.label].add(seed, record)
            stats[part.label].add(record)
        if part.refused:
            runs.notes.append(f"{part.label}: the service refused {part.refused} rows; they are left out.")
    if not any(part.role == "divergence" and stats[part.label].histograms for part in runs.parts) and not any(
        each.texts for each in outcomes.values()
    ):
        raise DataError("these runs have no result yet")
    return outcomes, stats


def _texts(runs: Runs, scored: results.Results, tokens: atlas.Atlas, most: int) -> heatmaps.Problems:
    """The texts of the problems that the flip table begins with, or of the first ones where there is none."""
    best = scored.best()
    parts: list[Part] = [*runs.of("a"), *([best] if best else []), *runs.of("b", "sample")]
    parts = parts or runs.of("divergence")
    _, flips = results.flip_table(scored, ())
    if flips is not None:
        chosen = [problem.id for problem in flips.problems[:most]]
    else:
        known = {problem for part in parts for problem in scored.outcomes[part.label].written}
        if not known:
            known = {heatmaps.problem_of(part, record) for part in parts for _, record in part.records()}
        chosen = sorted(known, key=natural)[:most]
    return heatmaps.collect(chosen, parts, tokens.texts)


def _problems(shown: heatmaps.Problems, most: int) -> Section:
    section = Section("problems", "Problems, token by token")
    if not shown.records:
        section.missing = "No problem is shown."
        return section
    section.says = [
        "Bold and underlined: B leads. The stronger the background, the further the models are apart.",
        f"At most {most} problems are here, {heatmaps.SAMPLES_SHOWN} samples of each condition, "
        f"{heatmaps.TOKENS_SHOWN} tokens of each text. The page of rl-onoff serve opens this file too, under Runs.",
    ]
    section.html = heatmaps.html(shown)
    return section


def _files(sections: Sequence[Section]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for section in sections:
        if section.figure is not None:
            figure = f"figures/{section.name}"
            files |= {f"{figure}.png": section.figure.png, f"{figure}.svg": section.figure.svg}
        files |= {f"tables/{name}.csv": table.csv().encode() for name, _, table in section.tables}
    return files
