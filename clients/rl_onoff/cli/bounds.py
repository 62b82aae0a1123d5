"""`rl-onoff bounds`: what two stored runs of `distributions --top-k` say of the models' divergence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rl_onoff.bounds import BOUNDED
from rl_onoff.cli import dataset
from rl_onoff.cli.console import messages
from rl_onoff.cli.key_numbers import warnings
from rl_onoff.cli.progress import Bar
from rl_onoff.runs import Progress, RunFolder, read_results
from rl_onoff.runs.bounds import TopKRuns, summarise_bounds


def bounds(
    run_a: Annotated[Path, typer.Argument(help="A run of distributions --top-k, of model A.", metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(help="One of model B, over the same data.", metavar="RUN_B")],
    measure: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BOUNDED)}. May be repeated. Default: all.")
    ] = None,
    output: dataset.Output = None,
    resume: dataset.Resume = False,
    as_json: dataset.AsJson = False,
) -> None:
    """Bound divergences from below and above where only the most likely tokens were stored. It asks no service.

    The measure itself lies between the bounds; KL has a lower one only.
    """
    for name, wanted in (("--resume", resume), ("--json", as_json)):
        if wanted and output is None:
            raise typer.BadParameter("it needs --output", param_hint=name)
    runs = TopKRuns(run_a, run_b, measure or BOUNDED)
    if output is None:
        for record in runs.records():
            dataset.Stdout().append([record])
        return
    with RunFolder.open(output, runs.identity, resume=resume) as folder:
        done = Progress(already=len(folder.done))
        with Bar("bounds", runs.count()) as bar:
            for record in runs.records(folder.done):
                folder.append([record])
                done.rows += 1
                bar.update(done, [record])
        summary = summarise_bounds(read_results(output))
        folder.write_summary(summary)
    err = messages()
    for line in warnings(summary):
        err.print(line, style="yellow", markup=False)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, allow_nan=False))
        return
    before = f", {done.already} rows were there before" if done.already else ""
    counts = f"{summary['results']} results, {summary['failed']} rows without bounds{before}"
    err.print(f"{counts}: {output}", markup=False)
    for name, found in summary["bounds"].items():
        ends = " and ".join(f"{_number(value)} ({end})" for end, value in found.items())
        err.print(f"{name}: mean within {ends}", markup=False)


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
