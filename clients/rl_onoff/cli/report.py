"""`rl-onoff report`: finished runs as one page, figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl_onoff.cli.console import messages


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of one sweep.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: `report` in the first folder.", show_default=False)
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="Figures of tokens are of this one. Default: the first policy.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Problems are judged by this one. Default: the first.")] = None,
    texts: Annotated[int, typer.Option(min=0, help="Problems shown with their tokens, at most.")] = 40,
) -> None:
    """Write what runs show: accuracy against share, divergences, flips, texts. One HTML file, SVG, PNG and CSV."""
    from rl_onoff.report import write

    folder = output or runs[0] / "report"
    path = write(runs, folder, condition=condition, metric=metric, texts=texts)
    messages().print(f"{path}; figures and tables beside it", markup=False)
    typer.echo(path)
