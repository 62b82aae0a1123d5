"""Rows through a task, several at once, into a run.

Rows are taken from the reader as requests end, so neither a large data set nor a slow service fills the memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rl_onoff.client import AsyncClient
from rl_onoff.data import Broken, Reader, Row
from rl_onoff.data.spill import Key, Keys
from rl_onoff.errors import DataError, OnOffError, RequestError, RunMismatch, UnknownModel, WorkerUnavailable
from rl_onoff.runs.tasks import Record, Task
from rl_onoff.schemas import ModelCard

#: A service is asked again which models it serves when the last answer to that is so old.
_CHECK_SECONDS: Final = 2.0
#: Kept of what was wrong with rows; all are counted.
_KEPT: Final = 100


class Sink(Protocol):
    """Where results go: a `RunFolder`, or whatever has these two."""

    @property
    def done(self) -> Collection[Key]: ...
    def append(self, records: list[Record]) -> None: ...


@dataclass
class Progress:
    """What has happened so far. `bad` are the first rows that could not be read or were refused; `bad_count` all.

    `broken` and `broken_count` are without those the service refused.
    """

    rows: int = 0
    results: int = 0
    already: int = 0
    bad_count: int = 0
    bad: list[str] = field(default_factory=list)
    broken_count: int = 0
    broken: list[str] = field(default_factory=list)

    def add_bad(self, broken: Broken, *, refused: bool = False) -> None:
        """Count a bad row."""
        self.bad_count += 1
        if len(self.bad) < _KEPT:
            self.bad.append(str(broken))
        if not refused:
            self.broken_count += 1
            if len(self.broken) < _KEPT:
                self.broken.append(str(broken))


async def identity(client: AsyncClient, task: Task, reader: Reader) -> dict[str, Any]:
    """What a run is a run of: the task, the models with their fingerprints, and the data."""
    return {
        "command": task.command,
        "settings": task.settings(),
        "models": await fingerprints(client, task.models),
        "data": await asyncio.to_thread(reader.identity),
    }


async def fingerprints(
    client: AsyncClient, models: tuple[str | None, ...], *, patience: float = 600.0
) -> list[dict[str, str | None]]:
    """Name and fingerprint of each model asked, once they are loaded. Raises UnknownModel, WorkerUnavailable."""
    deadline = time.monotonic() + patience
    while True:
        found = await _cards(client, models)
        waiting = next((card for card in found if card.fingerprint is None), None)
        if waiting is None:
            return [{"name": card.name, "fingerprint": card.fingerprint} for card in found]
        if waiting.state == "failed" or time.monotonic() > deadline:
            raise WorkerUnavailable(f"the model {waiting.name} is not ready: its state is {waiting.state}")
        await asyncio.sleep(0.5)


async def _cards(client: AsyncClient, models: tuple[str | None, ...]) -> list[ModelCard]:
    served = await client.models()
    if any(name is None for name in models):
        if len(served.pairs) != 1:
            pairs = ", ".join(f"{pair.a} and {pair.b}" for pair in served.pairs)
            raise UnknownModel(f"several pairs are served ({pairs}): say which with a and b")
        pair = served.pairs[0]
        models = tuple(name or default for name, default in zip(models, (pair.a, pair.b), strict=True))
    cards = {card.name: card for card in served.models}
    unknown = next((name for name in models if name not in cards), None)
    if unknown is not None:
        raise UnknownModel(f"there is no model {unknown!r}; served are {', '.join(cards)}")
    return [cards[name] for name in models if name is not None]


async def execute(
    client: AsyncClient,
    task: Task,
    reader: Iterable[Row | Broken],
    sink: Sink,
    *,
    concurrency: int = 16,
    skip_bad: bool = False,
    report: Callable[[Progress, list[Record]], None] = lambda progress, records: None,
) -> Progress:
    """Do what is not done yet. Raises what a request raised; DataError for a bad row, unless `skip_bad`."""
    progress = Progress()
    guard = Guard(client, task.models, await fingerprints(client, task.models))
    todo = _todo(reader, task, sink, progress, skip_bad=skip_bad)

    async def worker() -> None:
        for row, missing in todo:
            try:
                records = await task.work(client, row, missing)
            except RequestError as error:
                if error.retryable or not skip_bad or not _is_the_rows(error):
                    raise _named(error, row) from error
                progress.add_bad(Broken(row.where, error.detail), refused=True)
                records = [failed(row, sample, error) for sample in missing]
            await guard.check()
            sink.append(records)
            progress.results += len(records)
            progress.rows += 1
            report(progress, records)

    await _together(worker() for _ in range(concurrency))
    return progress


def bad_rows(progress: Progress, results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """For the summary of a run: the same however often it was resumed, so refused rows are taken from the results."""
    first, count = list(progress.broken), progress.broken_count
    with closing(Keys()) as seen:
        for record in results:
            if "error" not in record or (key := (str(record["id"]),)) in seen:
                continue
            seen.add(key)
            count += 1
            if len(first) < _KEPT:
                first.append(f"{record['id']}: {record['error']['detail']}")
    return {"bad_rows": count, "first_bad_rows": first}


def failed(row: Row, sample: int, error: OnOffError) -> Record:
    """What stands in the results for a row that the service refused."""
    return {"id": row.id, "sample": sample, "error": {"type": error.slug, "detail": error.detail}}


class Guard:
    """Keeps the answers of two different models out of one run: a service may come back with others."""

    def __init__(
        self, client: AsyncClient, models: tuple[str | None, ...], expected: list[dict[str, str | None]]
    ) -> None:
        self._client, self._models, self._expected = client, models, expected
        self._checked = time.monotonic()
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Raises RunMismatch when the service serves other models than at the beginning."""
        async with self._lock:
            if time.monotonic() - self._checked < _CHECK_SECONDS:
                return
            if (now := await fingerprints(self._client, self._models)) != self._expected:
                raise RunMismatch(f"the service serves other models than when the run began: {self._expected}, {now}")
            self._checked = time.monotonic()


def _todo(
    reader: Iterable[Row | Broken], task: Task, sink: Sink, progress: Progress, *, skip_bad: bool
) -> Iterator[tuple[Row, list[int]]]:
    for row in reader:
        if isinstance(row, Broken):
            if not skip_bad:
                raise DataError(f"{row} (--skip-bad goes on without such rows)")
            progress.add_bad(row)
            continue
        wanted = task.samples_of(row)
        missing = [sample for sample in wanted if ("", row.id, str(sample)) not in sink.done]
        progress.already += len(wanted) - len(missing)
        if missing:
            yield row, missing


def _is_the_rows(error: RequestError) -> bool:
    """Whether it is this row that is refused: of all rows alike 401 and 404 are."""
    return error.status in (400, 413, 422)


def _named(error: RequestError, row: Row) -> OnOffError:
    if error.retryable or not _is_the_rows(error):
        return error
    return DataError(f"{row.where}: {error.detail} (--skip-bad goes on without such rows)")


async def _together(work: Iterator[Any]) -> None:
    """All of it; the first failure ends the rest, and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def count_bad(reader: Reader) -> tuple[int, list[str]]:
    """How many rows of a source are bad, and the first of them: a look over the whole before hours of work."""
    progress = Progress()
    for row in reader:
        if isinstance(row, Broken):
            progress.add_bad(row)
    return progress.bad_count, progress.bad
