"""`rl-onoff demo`: the shipped pair at work, in a minute."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rl_onoff.cli import measurement
from rl_onoff.cli.child import choose_port, running_service
from rl_onoff.cli.console import messages, results
from rl_onoff.cli.measurement import MAX_TOKENS, Problem
from rl_onoff.cli.tokens import TokenPrinter, closing_line
from rl_onoff.client import Client
from rl_onoff.errors import ConfigurationError
from rl_onoff.policy import DivergencePolicy
from rl_onoff.schemas import Switch, SwitchToken

SHOWN: Final = 3
MEASURED: Final = 50


def demo(
    once: Annotated[
        bool, typer.Option("--once", envvar="DEMO_ONCE", help="End after the measurement instead of serving on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: 8000 if it is free, else any.")] = 0,
) -> None:
    """Serve the pair that comes with the repository, watch it switch, and measure what switching does."""
    checkout = find_checkout()
    problems = measurement.read_problems(checkout / "demo" / "problems.jsonl", MEASURED)
    threshold = measurement.read_threshold(checkout / "demo" / "results.json")
    # Every way of being asked to end goes through the context manager that stops the child.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    out, err = results(), messages()
    with running_service(checkout, choose_port(port)) as service:
        with err.status("Starting the service and loading both models ..."):
            service.wait_ready()
        out.print(f"The service answers at [bold]{service.url}[/] with two models: A (base) and B (A after RL).\n")
        with Client(service.url) as client:
            _legend(out, threshold)
            for index, problem in enumerate(problems[:SHOWN]):
                _show(client, problem, threshold, seed=index, out=out)
        _measure(service.url, problems, threshold, out, err)
        if once:
            return
        _invite(service.url, problems[0].prompt, threshold, out)
        try:
            service.wait()
        except KeyboardInterrupt:
            err.print("Stopping.", style="dim")


def find_checkout() -> Path:
    """The checkout this command belongs to, or stands in: the folder with the service and the demo pair."""
    places = (*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents)
    for place in places:
        if (place / "app").is_dir() and (place / "demo" / "problems.jsonl").is_file():
            return place
    raise ConfigurationError(
        "the demo pair comes with the repository, not with the package: run this in a checkout after "
        "pip install -e '.[server,hf]' (or make demo)"
    )


def _legend(out: Console, threshold: float) -> None:
    printer = TokenPrinter(out)
    out.print(f"A writes; where JS(A, B) > {threshold:g} nats, B takes over for that token.", end=" ")
    if out.is_terminal:
        out.print("Legend: ", end="")
        for text, lead, divergence in (("A", "a", 0.0), (" B ", "b", threshold), (" far apart ", "b", 0.6)):
            printer.token(SwitchToken(index=0, id=0, text=text, lead=lead, divergence=divergence))
    out.print("\n")


def _show(client: Client, problem: Problem, threshold: float, *, seed: int, out: Console) -> None:
    """Stream one problem in colour."""
    printer = TokenPrinter(out)
    out.print(escape(problem.prompt), style="dim", end="")
    policy = DivergencePolicy(on=threshold)
    with client.switch_generate(
        problem.prompt, policy=policy, temperature=1.0, max_tokens=MAX_TOKENS, seed=seed, stream=True
    ) as stream:
        for event in stream:
            match event:
                case SwitchToken():
                    printer.token(event)
                case Switch():
                    printer.switch(event)
    printer.end()
    verdict = (
        "[green]right[/]" if problem.solved_by(stream.result.text) else f"[red]wrong[/], it is {problem.reference}"
    )
    out.print(f"{verdict}  [dim]{closing_line(stream.result)}[/]\n")


def _measure(url: str, problems: list[Problem], threshold: float, out: Console, err: Console) -> None:
    columns = (TextColumn("Measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=4 * len(problems))
        conditions = asyncio.run(measurement.measure(url, problems, threshold, lambda: progress.advance(task)))
    out.print(measurement.table(conditions), soft_wrap=False)
    out.print(measurement.in_words(conditions) + "\n", soft_wrap=False)


def _invite(url: str, prompt: str, threshold: float, out: Console) -> None:
    body = json.dumps({"prompt": prompt, "policy": {"kind": "divergence", "on": threshold}, "stream": True})
    out.print("Still serving. Try, in another terminal:\n")
    out.print(f"  curl -N {url}/switch-generate -H 'Content-Type: application/json' -d '{body}'", markup=False)
    out.print(
        f"  {os.environ.get('VIRTUAL_ENV') or '.venv'}/bin/rl-onoff switch '{prompt}' --url {url}\n", markup=False
    )
    out.print("Ctrl-C ends it.")
