"""Where the commands write: results to stdout, everything else to stderr. rich honours NO_COLOR and pipes."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.console import Console

from rl_onoff.client import DEFAULT_URL

Url = Annotated[str, typer.Option("--url", envvar="RL_ONOFF_URL", help="The service.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="RL_ONOFF_API_KEY", help="Sent as a bearer token.", show_default=False)
]
URL: Final = DEFAULT_URL
#: How long a service that is busy, starting or absent is asked again: a person waits, and its worker restarts in 10 s.
RETRY_SECONDS: Final = 20.0


def results() -> Console:
    """For what a command was asked for."""
    return Console(emoji=False, highlight=False, soft_wrap=True)


def messages() -> Console:
    """For progress and messages."""
    return Console(stderr=True, emoji=False, highlight=False, soft_wrap=True)
