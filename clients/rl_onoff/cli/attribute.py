"""`rl-onoff attribute`: which switches of a run mattered."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rl_onoff.cli import dataset
from rl_onoff.cli.console import URL, ApiKey, Url, messages
from rl_onoff.cli.output import into
from rl_onoff.cli.progress import Bar
from rl_onoff.client import AsyncClient
from rl_onoff.runs import RunFolder, execute, read_results
from rl_onoff.runs.attribution import MOST, Attribution, SwitchedRun, summarise_attribution

_COLUMNS: Final = ("id", "sample", "start", "end", "of", "token", "value", "first_difference")


def attribute(
    run: Annotated[Path, typer.Argument(help="The folder of a run of switch, or of one condition of a sweep.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for what comes out.")],
    most: Annotated[
        int, typer.Option(min=1, max=10_000, help="Switches undone per generation: those of the greatest values.")
    ] = MOST,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="Default: the run's. May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first generations only. Default: all.")] = None,
    resume: dataset.Resume = False,
    concurrency: dataset.Concurrency = 16,
    wait: dataset.Wait = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Undo one switch of a run at a time, write the text again, and tell which changed what came out.

    A line per switch undone is in switches.csv in the folder, the texts are in results.jsonl.
    """
    source = SwitchedRun(run, limit)
    task = Attribution.of(source, metric or (), most)
    client = dataset.connect(url, api_key, wait)
    summary = asyncio.run(_attribute(client, source, task, output, resume=resume, concurrency=concurrency))
    _write_csv(output, task.metrics)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, allow_nan=False))
        return
    err = messages()
    err.print(
        f"{summary['undone']} of {summary['takeovers']} switches undone, {summary['left_out']} left out (--most), in "
        f"{summary['generations']} generations; {summary['changed_text']} changed the text",
        markup=False,
    )
    for name, found in summary["metrics"].items():
        err.print(
            f"{name}: lowered by {found['lowered']}, raised by {found['raised']}, "
            f"{found['mean_change']:+.4g} on average",
            markup=False,
        )


async def _attribute(
    client: AsyncClient, source: SwitchedRun, task: Attribution, output: Path, *, resume: bool, concurrency: int
) -> dict[str, Any]:
    async with client:
        with RunFolder.open(output, await source.identity(client, task), resume=resume) as folder:
            with Bar(task.command, await asyncio.to_thread(source.count)) as bar:
                await execute(client, task, source, folder, concurrency=concurrency, report=bar.update)
            summary = summarise_attribution(source, read_results(output), task.most)
            folder.write_summary(summary)
    return summary


def _write_csv(output: Path, metrics: tuple[str, ...]) -> None:
    with into(output), (output / "switches.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(f"{name} change" for name in metrics)])
        for record in read_results(output):
            if "error" not in record:
                writer.writerow([*(record[name] for name in _COLUMNS), *(record["change"][name] for name in metrics)])
