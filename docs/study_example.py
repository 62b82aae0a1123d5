# %% [markdown]
# # A study by hand, from Python
#
# Cells for Jupyter, VS Code or PyCharm, or a program: `python docs/study_example.py`. It needs the service (`rl-onoff
# demo`, or `rl-onoff serve`); `RL_ONOFF_URL` says where, default http://127.0.0.1:8000. `tests/e2e/test_docs_study.py`
# runs it.

# %%
import asyncio
import os
import tempfile
from pathlib import Path

from rl_onoff import AsyncClient
from rl_onoff.data import Reader, open_source
from rl_onoff.metrics import metric
from rl_onoff.runs import (
    Attribution,
    RunFolder,
    Sample,
    SwitchedRun,
    SwitchTask,
    execute,
    identity,
    read_results,
    summarise,
    summarise_attribution,
)

URL = os.environ.get("RL_ONOFF_URL", "http://127.0.0.1:8000")
ROWS = int(os.environ.get("ROWS", "20"))
HERE = Path(tempfile.mkdtemp(prefix="study-"))
PROBLEMS = Path(__file__).parents[1] / "demo" / "problems.jsonl" if "__file__" in globals() else "demo/problems.jsonl"


# %% [markdown]
# A metric of our own beside the library's: how many steps of the calculation are written out.


# %%
@metric("steps", needs_reference=False)
def steps(text: str, reference: str | None) -> float:
    """Lines with a result in them."""
    return float(sum("=" in line for line in text.splitlines()))


METRICS = ("exact_match:after=A:", "steps")
SAMPLING = {"max_tokens": 120}

# %% [markdown]
# What is asked: A alone, B alone, and A with B where the two part by more than 0.3 nats of Jensen-Shannon divergence.
# One seed: sample i of a problem has the same noise in all three.

# %%
TASKS = {
    "a": Sample(model="base", n=2, sampling=SAMPLING, metrics=METRICS, seed=1),
    "b": Sample(model="rl", n=2, sampling=SAMPLING, metrics=METRICS, seed=1),
    "switched": SwitchTask(
        a="base", b="rl", policy={"kind": "divergence", "on": 0.3}, n=2, sampling=SAMPLING, metrics=METRICS, seed=1
    ),
}


async def run_all() -> dict[str, dict]:
    """A folder per task. Interrupt it and call it again: it goes on where it was."""
    found = {}
    async with AsyncClient(URL) as client:
        for name, task in TASKS.items():
            reader = Reader(open_source(PROBLEMS), needs=task.needs, limit=ROWS)
            with RunFolder.open(HERE / name, await identity(client, task, reader), resume=True) as folder:
                await execute(client, task, reader, folder)
            found[name] = summarise(read_results(HERE / name), METRICS)
    return found


summaries = asyncio.run(run_all())  # in a notebook: await run_all()

# %%
for name, summary in summaries.items():
    own = summary["metrics"]["exact_match:after=A:"]
    share = summary.get("b_fraction", 0.0)
    print(f"{name:9} {own['value']:.2f} [{own['low']:.2f}, {own['high']:.2f}], B's share in the run {share:.1%}")

# %% [markdown]
# Where did B take over, and at which divergence?

# %%
places = [
    (switch["value"], result["tokens"][switch["position"]])
    for result in read_results(HERE / "switched")
    for switch in result["switches"]
    if switch["to"] == "b"
]
for value, token in sorted(places, reverse=True)[:5]:
    print(f"{value:.3f} nats at {token!r}")


# %% [markdown]
# Which of the switches mattered? Each is undone alone, by a schedule of the others.


# %%
async def attribute() -> dict:
    """As `rl-onoff attribute`, of the first ten generations."""
    source = SwitchedRun(HERE / "switched", limit=10)
    task = Attribution.of(source, METRICS, most=4)
    async with AsyncClient(URL) as client:
        with RunFolder.open(HERE / "undone", await source.identity(client, task), resume=True) as folder:
            await execute(client, task, source, folder)
    return summarise_attribution(source, read_results(HERE / "undone"), task.most)


attribution = asyncio.run(attribute())
print(f"{attribution['undone']} switches undone, {attribution['changed_text']} changed the text")
print(f"{attribution['metrics']['exact_match:after=A:']['lowered']} of them cost the right answer")
