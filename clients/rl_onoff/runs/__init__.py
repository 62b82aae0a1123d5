"""Runs over data sets that can be trusted for hours: kill them at any moment and go on.

    from rl_onoff.data import Reader, open_source
    from rl_onoff.runs import RunFolder, Sample, execute

    reader = Reader(open_source("problems.jsonl"), needs=("prompt", "reference"))
    task = Sample(model="base", n=4, sampling={"max_tokens": 160}, metrics=("exact_match:after=A:",), seed=1)
    async with AsyncClient() as client:
        with RunFolder.open("runs/base", await identity(client, task, reader), resume=True) as run:
            await execute(client, task, reader, run)

A run folder holds `manifest.json` (what was asked of which models over which data), `results.jsonl` (one line per row
and sample, appended whole) and, once done, `summary.json`.
"""

from rl_onoff.runs.attribution import Attribution, SwitchedRun, summarise_attribution
from rl_onoff.runs.folder import RunFolder, read_results
from rl_onoff.runs.loop import Progress, execute, identity
from rl_onoff.runs.scoring import Distributions, Divergence
from rl_onoff.runs.summary import summarise
from rl_onoff.runs.tasks import Sample, SwitchTask, Task

__all__ = [
    "Attribution",
    "Distributions",
    "Divergence",
    "Progress",
    "RunFolder",
    "Sample",
    "SwitchTask",
    "SwitchedRun",
    "Task",
    "execute",
    "identity",
    "read_results",
    "summarise",
    "summarise_attribution",
]
