"""Reports of finished runs: one HTML file, figures and tables.

    from rl_onoff.report import write

    write(["runs/sweep"], "report")

Reads runs of `sample`, `switch` and `divergence`, and sweeps. Results are read line by line; what is kept does not grow
with their number, but for one bit a sample (who was right) and the texts that are shown.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rl_onoff.errors import DataError
from rl_onoff.report import sections as make
from rl_onoff.report.atlas import Atlas
from rl_onoff.report.figures import drawn
from rl_onoff.report.outcomes import Flips, Key, binary_metric, flips, outcomes
from rl_onoff.report.page import Text, page
from rl_onoff.report.reading import Condition, conditions
from rl_onoff.runs.folder import read_manifest
from rl_onoff.version import __version__

__all__ = ["PAGE", "TEXTS", "Atlas", "Condition", "conditions", "write"]

PAGE: Final = "report.html"
#: Problems whose texts a report shows, unless told otherwise.
TEXTS: Final = 40


def write(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    condition: str | None = None,
    metric: str | None = None,
    texts: int = TEXTS,
) -> Path:
    """Write `report.html`, and `figures/` (SVG, PNG) and `tables/` (CSV) beside it; the page's path.

    `condition` names the one that figures of single tokens are of (default: the first policy, else the first with two
    models); `metric` the one problems are judged by (default: the first, and for flips the first that is right or
    wrong); at most `texts` problems are shown with their tokens, those that switching turned first. The same runs give
    the same bytes. Raises DataError for what is no run or is not in the runs, MissingDependency without matplotlib.
    """
    found = conditions(runs)
    main = _main(found, condition)
    names = list(dict.fromkeys(name for each in found for name in each.summary.get("metrics", {})))
    if metric is not None and metric not in names:
        raise DataError(f"there is no metric {metric!r} in these runs; there are {', '.join(names) or 'none'}")
    chosen = metric or (names[0] if names else None)
    atlas = _atlas(main) if main is not None else None
    turned = _flips(found, main, metric or binary_metric(names))
    parts = [
        make.condition_table(found, chosen),
        make.pareto(found, chosen),
        make.histogram(atlas),
        make.position(atlas),
        make.entropy(atlas),
        make.shifts(atlas),
        make.top_tokens(atlas),
        make.largest(atlas),
        make.run_lengths(atlas),
        make.pass_at_k(found, chosen),
        make.flip_table(turned),
    ]
    floor = None if atlas is None else atlas.noise_floor
    images = {part.name: drawn(part, mark=floor) for part in parts if part.figure and part.rows}
    folder = Path(output)
    for part in parts:
        if part.rows:
            _csv(folder / "tables" / f"{part.name}.csv", part)
    for name, (svg, png) in images.items():
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "figures" / f"{name}.svg").write_bytes(svg)
        (folder / "figures" / f"{name}.png").write_bytes(png)
    flipped = {} if turned is None else {"Rescued": turned.rescued, "Broken": turned.broken}
    html = page(
        f"rl-onoff report: {', '.join(Path(run).name for run in runs)}",
        _facts(runs, found, main, texts),
        [(part, images[part.name][0] if part.name in images else None) for part in parts],
        _texts(found, main, turned, texts),
        flipped,
    )
    path = folder / PAGE
    path.write_text(html, encoding="utf-8")
    return path


def _main(found: Sequence[Condition], name: str | None) -> Condition | None:
    if name is not None:
        named = next((each for each in found if each.name == name), None)
        if named is None:
            raise DataError(f"there is no condition {name!r}; there are {', '.join(each.name for each in found)}")
        return named
    for roles in (("policy",), ("divergence",), ("control", "a_alone", "b_alone")):
        for each in found:
            if each.role in roles and len(each.models) == 2:
                return each
    return None


def _atlas(main: Condition) -> Atlas | None:
    atlas: Atlas | None = None
    for record in main.results():
        if atlas is None:
            measure = record.get("measure") or next(iter(record.get("values") or ()), None)
            if measure is None:
                return None
            atlas = Atlas(str(measure))
        atlas.add(record)
    return atlas


def _alone(found: Sequence[Condition], role: str) -> Condition | None:
    return next((each for each in found if each.role == role), None)


def _flips(found: Sequence[Condition], main: Condition | None, metric: str | None) -> Flips | None:
    a, b = _alone(found, "a_alone"), _alone(found, "b_alone")
    if a is None or b is None or main is None or main.role != "policy" or metric is None:
        return None
    judged = [outcomes(each.results(), metric) for each in (a, b, main)]
    turned = flips(*judged)
    return turned if turned.counts else None


def _texts(found: Sequence[Condition], main: Condition | None, turned: Flips | None, most: int) -> list[Text]:
    if main is None:
        return []
    verdicts: dict[Key, str] = {}
    if turned is not None:
        verdicts |= dict.fromkeys(turned.rescued, "rescued") | dict.fromkeys(turned.broken, "broken")
    shown = [each for each in (_alone(found, "a_alone"), _alone(found, "b_alone"), main) if each is not None]
    wanted = list(verdicts)[:most]
    for record in main.results():
        if len(wanted) == most:
            break
        key = (str(record["id"]), int(record.get("sample", 0)))
        if key not in verdicts:
            wanted.append(key)
    records: dict[Key, dict[str, dict[str, Any]]] = {key: {} for key in wanted}
    for each in dict.fromkeys(each.name for each in shown):
        source = next(other for other in shown if other.name == each)
        for record in source.results():
            key = (str(record["id"]), int(record.get("sample", 0)))
            if key in records:
                records[key][each] = record
    return [Text(key, verdicts.get(key, "not turned"), records[key]) for key in wanted if records[key]]


def _facts(
    runs: Sequence[str | Path], found: Sequence[Condition], main: Condition | None, texts: int
) -> list[tuple[str, str]]:
    facts = [("written by", f"rl-onoff {__version__}")]
    for run in runs:
        manifest = read_manifest(run)
        identity = manifest["identity"]
        data = identity["data"]
        facts += [
            (
                Path(run).name,
                f"{identity['command']}, begun {manifest.get('created', '–')}, version {manifest['version']}",
            ),
            ("data", f"{data.get('source')}, SHA-256 {str(data.get('sha256'))[:16]}"),
        ]
        for model, side in zip(identity["models"], ("A", "B"), strict=False):
            facts.append((f"model {side}", f"{model['name']}, fingerprint {str(model['fingerprint'])[:16]}"))
    facts.append(("conditions", str(len(found))))
    if main is not None:
        facts.append(("tokens are of", main.name))
        facts.append(("texts", f"of at most {texts} problems, those that switching turned first"))
    return list(dict.fromkeys(facts))


def _csv(path: Path, section: make.Section) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(section.header)
        writer.writerows(section.rows)
