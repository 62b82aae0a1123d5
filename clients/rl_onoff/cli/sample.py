"""`rl-onoff sample`: samples of one model over a data set, scored."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from rl_onoff.cli import dataset
from rl_onoff.cli.console import URL, ApiKey, Url
from rl_onoff.data import Columns, Prompting
from rl_onoff.runs import Sample, summarise


def sample(
    data: dataset.Data,
    model: Annotated[str, typer.Option("--model", "-m", help="As the service names it.")],
    metric: dataset.MetricNames = None,
    n: dataset.Samples = 1,
    seed: dataset.Seed = 0,
    temperature: dataset.Temperature = None,
    max_tokens: dataset.MaxTokens = None,
    top_p: dataset.TopP = None,
    top_k: dataset.TopK = None,
    min_p: dataset.MinP = None,
    stop: dataset.Stop = None,
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
    chat: dataset.Chat = False,
    system: dataset.System = None,
    wait: dataset.Wait = 600.0,
    as_json: dataset.AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Sample from one model over a data set, and score what it wrote."""
    task = Sample(
        model=model,
        n=n,
        seed=seed,
        sampling=dataset.sampling(
            temperature=temperature, max_tokens=max_tokens, top_p=top_p, top_k=top_k, min_p=min_p, stop=stop
        ),
        metrics=tuple(metric or ()),
    )
    job = dataset.Job(
        task,
        data,
        output,
        resume,
        limit,
        concurrency,
        skip_bad,
        Columns(id=id_column, prompt=prompt_column, reference=reference_column),
        Prompting(template, chat, system, reference_after),
        wait,
        as_json,
    )
    job.run(url, api_key, partial(summarise, metrics=task.metrics))
