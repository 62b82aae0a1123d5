"""The bar of a run over a data set: rate, time left and the running mean of its metrics, on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Line
from rich.text import Text

from rl_onoff.cli.console import messages
from rl_onoff.runs import Progress as Done
from rl_onoff.runs.tasks import Record


class Bar:
    """Shown on a terminal only. `total` is in rows; None where it is not known."""

    def __init__(self, command: str, total: int | None) -> None:
        console = messages()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[running]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._line = self._progress.add_task(command, total=total, running="")
        self._sums: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: Done, records: list[Record]) -> None:
        """Rows that were there before count as done, but not for the rate."""
        for record in records:
            for name, value in record.get("metrics", {}).items():
                if value is not None:
                    total, count = self._sums.get(name, (0.0, 0))
                    self._sums[name] = (total + value, count + 1)
        running = "  ".join(f"{name} {total / count:.3g}" for name, (total, count) in self._sums.items())
        samples = max(1, done.results // max(1, done.rows))
        self._progress.update(self._line, completed=done.rows + done.already // samples, running=running)


class _Rate(ProgressColumn):
    def render(self, task: Line) -> Any:
        return Text("" if task.speed is None else f"{task.speed:.1f} rows/s", style="dim")
