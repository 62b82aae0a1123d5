"""What the commands over data sets share: their options, and how a run is carried out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rl_onoff.cli.console import messages
from rl_onoff.cli.key_numbers import key_numbers, warnings
from rl_onoff.cli.progress import Bar
from rl_onoff.client import AsyncClient
from rl_onoff.data import Columns, Prompting, Reader, open_source
from rl_onoff.data.spill import Key
from rl_onoff.errors import ConfigurationError, DataError
from rl_onoff.runs import Progress, RunFolder, Task, execute, identity, read_results
from rl_onoff.runs.loop import Sink, bad_rows, count_bad
from rl_onoff.runs.shards import Format, ShardWriter
from rl_onoff.runs.tasks import Record

Summarise = Callable[[Iterable[Mapping[str, Any]]], dict[str, Any]]
#: How often a request is sent again whose connection or worker was lost: an hour sees more of that than a minute.
RETRIES: Final = 8
#: How many bad rows are shown; all are counted.
_SHOWN: Final = 10

Data = Annotated[
    str,
    typer.Option(
        "--data", "-d", help="A .jsonl, .json, .csv, .tsv or .parquet file, a run's folder, or hf:name[:config]:split."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The run's folder: manifest, results.jsonl, summary. Default: results to stdout."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --output, or begin it.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The first rows only. Default: all.")]
Concurrency = Annotated[int, typer.Option(min=1, max=100, help="Requests at once.")]
Seed = Annotated[int, typer.Option(min=0, help="Each row draws by this and its id.")]
Samples = Annotated[int, typer.Option("--n", min=1, max=1024, help="Samples per row.")]
MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="exact_match[:number|words|boxed|after=MARK], math, bleu, rougeL, ...; with sample also perplexity. "
        "May be repeated.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count rows that cannot be used instead of stopping.")]
IdColumn = Annotated[str | None, typer.Option(help="Default: guessed, as all columns; else the row's number.")]
PromptColumn = Annotated[str | None, typer.Option(show_default=False)]
SolutionColumn = Annotated[str | None, typer.Option(show_default=False)]
ReferenceColumn = Annotated[str | None, typer.Option(show_default=False)]
ReferenceAfter = Annotated[
    str | None, typer.Option(help="Of the reference keep what follows the last such mark: '####' in GSM8K.")
]
Template = Annotated[
    str | None, typer.Option(help="A Jinja template over the columns that makes the prompt, or @FILE with one.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Send the prompt as a user message through the chat template.")]
System = Annotated[
    str | None,
    typer.Option(help="With --chat: a system message before it; also before a data set's messages that have none."),
]
Temperature = Annotated[float | None, typer.Option(min=0, help="0: the best token. Default: 1.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Default: 256.")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Default: 1.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Default: 0, off.")]
MinP = Annotated[float | None, typer.Option(min=0, max=1, help="Default: 0, off.")]
Stop = Annotated[list[str] | None, typer.Option(help="Ends a text before it. May be repeated.")]
MergeEos = Annotated[
    bool,
    typer.Option("--merge-eos", help="Count the end-of-sequence tokens of both models as one."),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds that a service which is busy, restarting or absent gets.")]
AsJson = Annotated[bool, typer.Option("--json", help="With --output: print the summary as JSON.")]


def sampling(**values: Any) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def look(reader: Reader, data: str, *, skip_bad: bool) -> None:
    """Bad rows are better known now than in three hours. A data set that is streamed is not read twice."""
    reader.settled()
    if skip_bad or data.startswith("hf:"):
        return
    count, first = count_bad(reader)
    if count:
        for line in first[:_SHOWN]:
            messages().print(line, style="yellow", markup=False)
        raise DataError(f"{count} bad row{'s' if count > 1 else ''} in {data}; --skip-bad goes on without")


def connect(url: str, api_key: str | None, wait: float) -> AsyncClient:
    """A client as patient as a run needs it."""
    try:
        return AsyncClient(url, api_key=api_key, retry_seconds=wait, max_retries=RETRIES)
    except ConfigurationError as error:
        raise typer.BadParameter(error.detail, param_hint="--url, --api-key") from None


@dataclass(frozen=True)
class Job:
    """A command over a data set, once its options are known."""

    task: Task
    data: str
    output: Path | None
    resume: bool = False
    limit: int | None = None
    concurrency: int = 16
    skip_bad: bool = False
    columns: Columns = field(default_factory=Columns)
    prompting: Prompting = field(default_factory=Prompting)
    wait: float = 600.0
    as_json: bool = False

    def run(self, url: str, api_key: str | None, summarise: Summarise, *, shards: Format | None = None) -> None:
        """Carry it out. Exit codes as everywhere; the results of a run that fails stay."""
        for name, wanted in (("--resume", self.resume), ("--json", self.as_json)):
            if wanted and self.output is None:
                raise typer.BadParameter("it needs --output", param_hint=name)
        prompting = replace(self.prompting, template=_template(self.prompting.template))
        reader = Reader(open_source(self.data), self.task.needs, self.columns, prompting, self.limit)
        look(reader, self.data, skip_bad=self.skip_bad)
        client = connect(url, api_key, self.wait)
        asyncio.run(self._carry_out(client, reader, summarise, shards))

    async def _carry_out(
        self, client: AsyncClient, reader: Reader, summarise: Summarise, shards: Format | None
    ) -> None:
        async with client:
            if self.output is None:
                _tell(await self._execute(client, reader, Stdout()), None, None)
                return
            found = await identity(client, self.task, reader)
            with RunFolder.open(self.output, found, resume=self.resume) as folder:
                if shards is None:
                    progress = await self._execute(client, reader, folder)
                else:
                    with ShardWriter(folder, shards) as writer:
                        progress = await self._execute(client, reader, writer)
                summary = summarise(read_results(self.output)) | bad_rows(progress, read_results(self.output))
                folder.write_summary(summary)
        _tell(progress, summary, self.output, as_json=self.as_json)

    async def _execute(self, client: AsyncClient, reader: Reader, sink: Sink) -> Progress:
        total = await asyncio.to_thread(reader.count)
        with Bar(self.task.command, total) as bar:
            return await execute(
                client,
                self.task,
                reader,
                sink,
                concurrency=self.concurrency,
                skip_bad=self.skip_bad,
                report=bar.update,
            )


class Stdout:
    """Results as lines on stdout, as they come."""

    done: frozenset[Key] = frozenset()

    def append(self, records: list[Record]) -> None:
        """Write lines."""
        for record in records:
            typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))


def _template(value: str | None) -> str | None:
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"the template cannot be read: {error}", param_hint="--template") from None


def _tell(progress: Progress, summary: dict[str, Any] | None, output: Path | None, *, as_json: bool = False) -> None:
    """What happened, on stderr; the summary on stdout as JSON if that was asked for."""
    err = messages()
    for line in progress.bad[:_SHOWN]:
        err.print(f"skipped {line}", style="yellow", markup=False)
    if count := progress.bad_count if summary is None else summary["bad_rows"]:
        err.print(f"{count} rows could not be used", style="yellow")
    before = f", {progress.already} were there before" if progress.already else ""
    err.print(f"{progress.results} results{before}" + (f": {output}" if output else ""), style="dim", markup=False)
    if summary is None:
        return
    for line in warnings(summary):
        err.print(line, style="yellow", markup=False)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, allow_nan=False))
        return
    for name, found in summary.get("metrics", {}).items():
        err.print(f"{name}: {_interval(found)}", markup=False)
        for k, each in found.get("pass_at_k", {}).items() if len(found.get("pass_at_k", {})) > 1 else ():
            err.print(f"  pass@{k}: {_interval(each)}", markup=False)
        if "majority_vote" in found:
            err.print(f"  majority vote: {_interval(found['majority_vote'])}", markup=False)
    for line in key_numbers(summary):
        err.print(line, markup=False)


def _interval(found: Mapping[str, Any]) -> str:
    low, high = _number(found["low"]), _number(found["high"])
    return f"{_number(found['value'])} [{low}, {high}] over {found['problems']} problems"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
