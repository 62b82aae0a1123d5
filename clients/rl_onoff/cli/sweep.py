"""`rl-onoff sweep`: a study, many policies over one data set."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rl_onoff.cli import dataset
from rl_onoff.cli.console import URL, ApiKey, Url, messages
from rl_onoff.cli.output import into
from rl_onoff.cli.progress import Bar
from rl_onoff.client import AsyncClient
from rl_onoff.data import Reader
from rl_onoff.runs import SwitchTask
from rl_onoff.runs import study as studies
from rl_onoff.runs.tables import table
from rl_onoff.runs.tasks import Record


def sweep(
    study: Annotated[Path, typer.Argument(help="YAML: data, policies, directions, metrics, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The study's folder; each condition is a run in it.")],
    resume: dataset.Resume = False,
    concurrency: dataset.Concurrency = 16,
    skip_bad: dataset.SkipBad = False,
    share: Annotated[
        bool, typer.Option(help="Generate once what conditions have in common; the results are the same.")
    ] = True,
    wait: dataset.Wait = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Try many policies over one data set, each beside its random control.

    The table is conditions.csv in the folder, and is shown at the end.
    """
    try:
        text = study.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"it cannot be read: {error}", param_hint="STUDY") from None
    parsed = studies.parse_study(text)
    dataset.look(parsed.reader(), parsed.data, skip_bad=skip_bad)
    client = dataset.connect(url, api_key, wait)
    records = asyncio.run(
        _sweep(client, parsed, output, resume=resume, concurrency=concurrency, skip_bad=skip_bad, share=share)
    )
    lines = table(records, parsed.metrics)
    _write_csv(output / "conditions.csv", lines)
    if as_json:
        typer.echo(json.dumps(lines, ensure_ascii=False, allow_nan=False))
    else:
        messages().print(_shown(lines, parsed.metrics))


async def _sweep(
    client: AsyncClient,
    study: studies.Study,
    output: Path,
    *,
    resume: bool,
    concurrency: int,
    skip_bad: bool,
    share: bool,
) -> list[Record]:
    async def carry(task: SwitchTask, folder: Path, reader: Reader) -> dict[str, Any]:
        total = await asyncio.to_thread(reader.count)
        with Bar(folder.name, total) as bar:
            return await studies.carry_out(
                client, task, folder, reader, concurrency=concurrency, skip_bad=skip_bad, report=bar.update
            )

    def report(record: Record) -> None:
        messages().print(f"{record['id']}: {record['summary']['results']} results", style="dim", markup=False)

    async with client:
        return await studies.sweep(client, study, output, carry, resume=resume, report=report, share=share)


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    with into(path.parent), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _shown(lines: list[dict[str, Any]], metrics: list[str]) -> Table:
    table = Table("condition", "taken over, %")
    for name in metrics:
        table.add_column(name, justify="right")
    for line in lines:
        values = [_interval(line[name], line[f"{name} low"], line[f"{name} high"]) for name in metrics]
        table.add_row(line["condition"], f"{100 * line['share']:.1f}", *values)
    return table


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    numbers = ["-" if each is None else f"{each:.3g}" for each in (value, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
