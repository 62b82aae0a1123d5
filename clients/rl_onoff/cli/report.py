"""`rl-onoff report`: figures and tables of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl_onoff.cli.output import into


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of sample, switch, divergence and sweep. Several make one report.", metavar="RUN..."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where report.html, figures and tables go. Default: RUN/report."),
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="Flips, texts and tokens are of this one. Default: that most often right.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What comes first, and judges problems. Default: the first.")
    ] = None,
    texts: Annotated[int, typer.Option(min=0, help="Problems shown with their tokens, at most.")] = 20,
) -> None:
    """Draw runs: accuracy against B's share, divergence, pass@k, flips, texts token by token.

    report.html is one file that opens anywhere; figures are beside it as PNG and SVG, tables as CSV.
    """
    from rl_onoff.report import make_report

    made = make_report(runs, condition=condition, metric=metric, texts=texts)
    with into(output or runs[0] / "report"):
        page = made.write(output or runs[0] / "report")
    typer.echo(page)
