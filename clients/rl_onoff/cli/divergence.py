"""`rl-onoff divergence`: how far two models are apart over a data set of solutions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import typer

from rl_onoff.cli import dataset
from rl_onoff.cli.console import URL, ApiKey, Url
from rl_onoff.data import Columns, Prompting
from rl_onoff.runs import Divergence
from rl_onoff.runs.tokens import summarise_divergence


class Units(StrEnum):
    """Of divergences and entropies."""

    NATS = "nats"
    BITS = "bits"


def divergence(
    data: dataset.Data,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="js, kl_ab, kl_ba, tv, entropy_a, delta_logp, ... May be repeated. Default: the first three."
        ),
    ] = None,
    units: Annotated[Units, typer.Option(help="Of divergences and entropies.")] = Units.NATS,
    temperature: Annotated[float, typer.Option(min=1e-4, help="Both models' rows are compared at it.")] = 1.0,
    a: Annotated[str | None, typer.Option("--a", help="Model A, where several pairs are served.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="Model B.")] = None,
    per_model: Annotated[
        bool, typer.Option("--per-model", help="Messages through each model's own chat template, not A's alone.")
    ] = False,
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also how far the arithmetic alone puts the models apart.")
    ] = False,
    merge_eos: dataset.MergeEos = False,
    output: dataset.Output = None,
    resume: dataset.Resume = False,
    limit: dataset.Limit = None,
    concurrency: dataset.Concurrency = 8,
    skip_bad: dataset.SkipBad = False,
    id_column: dataset.IdColumn = None,
    prompt_column: dataset.PromptColumn = None,
    solution_column: dataset.SolutionColumn = None,
    template: dataset.Template = None,
    chat: dataset.Chat = False,
    system: dataset.System = None,
    wait: dataset.Wait = 600.0,
    as_json: dataset.AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Compare A and B at every token of given solutions: a column, or the samples of a run (--data FOLDER)."""
    chosen: Literal["nats", "bits"] = "bits" if units is Units.BITS else "nats"
    mode: Literal["shared", "per_model"] = "per_model" if per_model else "shared"
    measures = tuple(measure or ("js", "kl_ab", "kl_ba"))
    task = Divergence(a, b, measures, chosen, temperature, mode, noise_floor, merge_eos)
    job = dataset.Job(
        task,
        data,
        output,
        resume,
        limit,
        concurrency,
        skip_bad,
        Columns(id=id_column, prompt=prompt_column, solution=solution_column),
        Prompting(template, chat, system),
        wait,
        as_json,
    )
    job.run(url, api_key, summarise_divergence)
