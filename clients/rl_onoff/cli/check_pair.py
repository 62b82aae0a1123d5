"""`rl-onoff check-pair`: whether two models can be compared, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rl_onoff.cli.console import messages, results
from rl_onoff.cli.folders import locate, read
from rl_onoff.cli.pairs import compare

_STYLES = {"same": "green", "differs": "yellow", "problem": "bold red"}


def check_pair(
    a: Annotated[str, typer.Option("--a", help="Model A: a folder or a hub id.")],
    b: Annotated[str, typer.Option("--b", help="Model B.")],
) -> None:
    """Compare tokenizers and configurations of two models, without their weights. Exit code 1: they are no pair."""
    findings = compare(read(locate(a)), read(locate(b)))
    table = Table(title_justify="left")
    for column in ("", "A", "B", "verdict", "what it means"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
        cells = (escape(cell) for cell in (finding.aspect, finding.a, finding.b))
        table.add_row(*cells, verdict, escape(finding.meaning))
    results().print(table, soft_wrap=False)
    problems = [finding for finding in findings if finding.verdict == "problem"]
    if problems:
        messages().print(f"These two are no pair: {problems[0].meaning}", style="red", markup=False)
        raise typer.Exit(1)
    messages().print("These two are a pair.", style="green")
