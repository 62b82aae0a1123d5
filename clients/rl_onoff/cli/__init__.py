"""The command line: `rl-onoff`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (or the reader of the output left),
2 wrong usage, or a request or data that have to be changed, 74 output that cannot be written, 75 another process writes
to the same run.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from rl_onoff.cli import (
    attribute,
    bounds,
    check_pair,
    demo,
    distributions,
    divergence,
    report,
    sample,
    serve,
    sweep,
    switch,
)
from rl_onoff.cli.console import messages
from rl_onoff.cli.output import UNWRITABLE, written
from rl_onoff.errors import OnOffError, OutputError, RequestError, RunError, RunLocked
from rl_onoff.version import __version__

#: `EX_TEMPFAIL` of sysexits.h.
_IN_USE: Final = 75


def _exit_code(error: OnOffError) -> int:
    if isinstance(error, RunLocked):
        return _IN_USE
    if isinstance(error, OutputError):
        return UNWRITABLE
    return 2 if isinstance(error, RequestError | RunError) and not error.retryable else 1


class _Commands(TyperGroup):
    """Commands whose expected failures are one line on stderr, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OnOffError as error:
            messages().print(f"rl-onoff: {error.detail}", style="red", markup=False)
            raise typer.Exit(_exit_code(error)) from error

    def main(self, *args: Any, **options: Any) -> Any:
        with written():
            return super().main(*args, **options)


app = typer.Typer(
    cls=_Commands,
    help="Compare a base model with its RL-tuned version token by token, and generate while switching between them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(serve.serve)
app.command()(demo.demo)
app.command()(sample.sample)
app.command()(distributions.distributions)
app.command()(divergence.divergence)
app.command()(bounds.bounds)
app.command()(switch.switch)
app.command()(sweep.sweep)
app.command()(report.report)
app.command()(attribute.attribute)
app.command()(check_pair.check_pair)
