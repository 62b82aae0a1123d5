"""`rl-onoff distributions`: what a model believes at every token of a data set of solutions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from rl_onoff.cli import dataset
from rl_onoff.cli.console import URL, ApiKey, Url
from rl_onoff.data import Columns, Prompting
from rl_onoff.runs import Distributions, Task
from rl_onoff.runs.scoring import summarise_distributions
from rl_onoff.runs.shards import Format, FullRows
from rl_onoff.schemas import PromptMode, RowDtype, RowKind


class Kind(StrEnum):
    """Of the values."""

    LOGPROBS = "logprobs"
    PROBS = "probs"
    LOGITS = "logits"


class Dtype(StrEnum):
    """Of the values on the wire; in files bfloat16 becomes float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class As(StrEnum):
    """Of the files."""

    JSONL = "jsonl"
    SAFETENSORS = "safetensors"
    PARQUET = "parquet"


_KINDS: dict[Kind, RowKind] = {Kind.LOGPROBS: "logprobs", Kind.PROBS: "probs", Kind.LOGITS: "logits"}
_DTYPES: dict[Dtype, RowDtype] = {
    Dtype.FLOAT32: "float32",
    Dtype.FLOAT16: "float16",
    Dtype.BFLOAT16: "bfloat16",
}


def distributions(
    data: dataset.Data,
    model: Annotated[str, typer.Option("--model", "-m", help="As the service names it.")],
    top_k: Annotated[int | None, typer.Option(min=1, help="The best so many tokens. Default: the vocabulary.")] = None,
    kind: Annotated[Kind, typer.Option(help="Of the values.")] = Kind.LOGPROBS,
    temperature: Annotated[float, typer.Option(min=1e-4, help="Of the distributions.")] = 1.0,
    form: Annotated[
        As | None, typer.Option("--format", help="jsonl needs --top-k and is its default, else safetensors.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the values in binary files.")] = Dtype.FLOAT32,
    per_model: Annotated[
        bool, typer.Option("--per-model", help="Messages through this model's own chat template, not the pair's.")
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
    """Write the next-token distributions of one model over given solutions.

    Whole rows go into shards in the run's folder, with results.jsonl as their index.
    """
    mode: PromptMode = "per_model" if per_model else "shared"
    chosen = form or (As.SAFETENSORS if top_k is None else As.JSONL)
    task: Task
    shards: Format | None = None
    if merge_eos and kind is Kind.LOGITS:
        raise typer.BadParameter("no model has a logit of merged tokens", param_hint="--merge-eos")
    if chosen is As.JSONL:
        if top_k is None:
            raise typer.BadParameter("the whole vocabulary as text? Give --top-k, or another --format")
        task = Distributions(model, top_k, _KINDS[kind], temperature, mode, merge_eos)
    else:
        if output is None:
            raise typer.BadParameter(f"{chosen.value} files need a folder", param_hint="--output")
        shards = "parquet" if chosen is As.PARQUET else "safetensors"
        task = FullRows(model, top_k, _KINDS[kind], temperature, _DTYPES[dtype], shards, mode, merge_eos)
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
    job.run(url, api_key, summarise_distributions, shards=shards)
