"""`rl-onoff switch`: switched generation, token by token on the terminal, or over a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Final, cast

import typer

from rl_onoff.cli import dataset
from rl_onoff.cli.console import RETRY_SECONDS, URL, ApiKey, Url, messages, results
from rl_onoff.cli.tokens import TokenPrinter, closing_line, low_means_apart
from rl_onoff.client import Client
from rl_onoff.data import Columns, Prompting
from rl_onoff.errors import ConfigurationError
from rl_onoff.fields import SwitchFields
from rl_onoff.kinds import parse_policy
from rl_onoff.runs import SwitchTask, summarise
from rl_onoff.schemas import Switch, SwitchToken

#: What a single prompt has no use for.
_OF_DATA: Final = (
    "metric",
    "n",
    "record",
    "output",
    "resume",
    "limit",
    "concurrency",
    "skip_bad",
    "id_column",
    "prompt_column",
    "reference_column",
    "reference_after",
    "template",
    "wait",
)


def switch(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads it from stdin, without its last newline. Or --data.")
    ] = None,
    on: Annotated[
        float | None,
        typer.Option(help="B leads beyond this value of what the policy watches. Default: 0.1 nats of JS divergence."),
    ] = None,
    off: Annotated[float | None, typer.Option(help="A is back at this value. Default: --on.")] = None,
    min_dwell: Annotated[int | None, typer.Option(min=1, help="Tokens B keeps at least. Default: 1.")] = None,
    max_b_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="The most B may have of all tokens. Default: no limit.")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="Of the divergence policy: js, kl_ab, kl_ba, tv, hellinger, renyi:0.5, ... Default: js."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="divergence, delta_logp, entropy, top_prob, rank, target_floor, typical, always_a, always_b, "
            'or JSON: {"kind": "random", "rate": 0.1}'
        ),
    ] = "divergence",
    temperature: Annotated[float | None, typer.Option(min=0, help="0: the best token. Default: 1.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 256.")] = None,
    top_p: dataset.TopP = None,
    top_k: dataset.TopK = None,
    min_p: dataset.MinP = None,
    stop: dataset.Stop = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: drawn, and reported; with --data 0.")] = None,
    chat: dataset.Chat = False,
    system: dataset.System = None,
    a: Annotated[str | None, typer.Option("--a", help="Model A, where several pairs are served.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="Model B.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as JSON, at the end; of --data --output the summary.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Instead of a prompt a data set: the options from here on are for it.",
            show_default=False,
        ),
    ] = None,
    metric: dataset.MetricNames = None,
    n: dataset.Samples = 1,
    record: Annotated[
        list[str] | None, typer.Option(help="Measures recorded for every token beside the policy's. May be repeated.")
    ] = None,
    output: dataset.Output = None,
    resume: dataset.Resume = False,
    limit: dataset.Limit = None,
    concurrency: dataset.Concurrency = 16,
    skip_bad: dataset.SkipBad = False,
    id_column: dataset.IdColumn = None,
    prompt_column: dataset.PromptColumn = None,
    reference_column: dataset.ReferenceColumn = None,
    reference_after: dataset.ReferenceAfter = None,
    template: dataset.Template = None,
    wait: dataset.Wait = 600.0,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Generate with A, and let B take over where the two disagree.

    A's tokens are plain, B's bold; the warmer the background the further the models are apart, by what the policy
    watches.
    """
    if (prompt is None) == (data is None):
        raise typer.BadParameter("give a prompt, or a data set with --data")
    rule = {"on": on, "off": off, "min_dwell": min_dwell, "max_b_fraction": max_b_fraction, "measure": measure}
    chosen = _policy(policy, rule)
    filters = dataset.sampling(top_p=top_p, top_k=top_k, min_p=min_p, stop=stop)
    prompting = Prompting(template, chat, system, reference_after)
    if data is not None:
        parse_policy(chosen)  # wrong before the data set is read, not after
        task = SwitchTask(
            a=a,
            b=b,
            policy=chosen,
            n=n,
            seed=seed or 0,
            sampling=dataset.sampling(temperature=temperature, max_tokens=max_tokens) | filters,
            measures=tuple(record or ()),
            metrics=tuple(metric or ()),
        )
        columns = Columns(id=id_column, prompt=prompt_column, reference=reference_column)
        job = dataset.Job(task, data, output, resume, limit, concurrency, skip_bad, columns, prompting, wait, as_json)
        job.run(url, api_key, partial(summarise, metrics=task.metrics))
        return
    if idle := _given(context, _OF_DATA):
        raise typer.BadParameter(f"only for a data set (--data), not for one prompt: {', '.join(idle)}")
    if system is not None and not chat:
        raise typer.BadParameter("it needs --chat", param_hint="--system")
    text = _stdin() if prompt == "-" else prompt or ""
    fields: SwitchFields = {"a": a, "b": b, "policy": chosen, **cast(SwitchFields, filters)}
    if chat:
        fields["messages"] = prompting.messages([{"role": "user", "content": text}])
    if temperature is not None:
        fields["temperature"] = temperature
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    if seed is not None:
        fields["seed"] = seed
    try:
        made = Client(url, api_key=api_key, retry_seconds=RETRY_SECONDS)
    except ConfigurationError as error:
        raise typer.BadParameter(error.detail, param_hint="--url, --api-key") from None
    with made as client:
        if as_json:
            typer.echo(client.switch_generate(None if chat else text, **fields).model_dump_json(by_alias=True))
        else:
            _stream(client, None if chat else text, fields, low=low_means_apart(chosen.get("kind")))


def _given(context: typer.Context, names: Collection[str]) -> list[str]:
    """Those of these options that stand in the command line, be it with their default."""
    options = {each.name: each.opts[0] for each in context.command.params}
    found = {name: context.get_parameter_source(name) for name in names}
    return [options[name] for name, source in found.items() if source is not None and source.name == "COMMANDLINE"]


def _stream(client: Client, prompt: str | None, fields: SwitchFields, *, low: bool) -> None:
    printer = TokenPrinter(results(), low=low)
    with client.switch_generate(prompt, stream=True, **fields) as stream:
        try:
            for event in stream:
                match event:
                    case SwitchToken():
                        printer.token(event)
                    case Switch():
                        printer.switch(event)
        finally:
            printer.end()
        messages().print(closing_line(stream.result), style="dim")


def _policy(policy: str, rule: dict[str, Any]) -> dict[str, Any]:
    """The policy as given, with the options that were given beside it."""
    chosen: dict[str, Any] = {"kind": policy}
    if policy.lstrip().startswith("{"):
        try:
            chosen = json.loads(policy)
        except ValueError as error:
            raise typer.BadParameter(f"--policy is no JSON: {error}") from error
    return chosen | {name: value for name, value in rule.items() if value is not None}


def _stdin() -> str:
    return sys.stdin.read().removesuffix("\n")
