"""Peak memory of a run over many rows: `python -m benchmarks.run_memory 10000 100000`.

Each size is a process of its own: a file of so many rows through reader, client, run folder, resume and summary,
against a service that answers at once and in the same process, so that nothing but the run is measured.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from rl_onoff import AsyncClient
from rl_onoff.data import Reader, open_source
from rl_onoff.runs import RunFolder, Sample, execute, identity, read_results, summarise
from rl_onoff.runs.loop import count_bad


def answer(request: httpx.Request) -> httpx.Response:
    """What `/models` and `/generate` say."""
    if request.url.path == "/models":
        card = {"name": "m", "pair": "p", "side": "a", "backend": "hf", "state": "ready", "fingerprint": "f"}
        return httpx.Response(200, json={"models": [card], "pairs": []})
    result = {"prompt_index": 0, "index": 0, "text": "A: 1", "token_ids": [1] * 40, "finish_reason": "stop", "seed": 1}
    usage = {"prompt_tokens": 1, "completion_tokens": 40}
    return httpx.Response(200, json={"id": "g", "model": "m", "results": [result], "usage": usage})


async def run(rows: int, folder: Path) -> None:
    """A run that is stopped after half of the rows, resumed, and summarised."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"id": f"problem-{i:08d}", "prompt": "p" * 50, "reference": str(i % 2)}) + "\n")
    task = Sample(model="m", metrics=("exact_match:after=A:",))
    async with AsyncClient("http://x", transport=httpx.MockTransport(answer)) as client:
        for limit in (rows // 2, rows):
            reader = Reader(open_source(path), task.needs, limit=limit)
            count_bad(reader)
            with RunFolder.open(folder / "run", await identity(client, task, reader), resume=True) as into:
                await execute(client, task, reader, into)
    found = summarise(read_results(folder / "run"), task.metrics)
    assert (found["results"], found["metrics"]["exact_match:after=A:"]["value"]) == (rows, 0.5)


def measure(rows: int) -> dict[str, Any]:
    """In a child: `{rows, peak_mb, seconds}`."""
    begin = time.perf_counter()
    child = [sys.executable, "-m", "benchmarks.run_memory", "--child", str(rows)]
    peak = int(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    return {"rows": rows, "peak_mb": round(peak / 1024, 1), "seconds": round(time.perf_counter() - begin, 1)}


def main() -> None:
    if sys.argv[1] == "--child":
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(run(int(sys.argv[2]), Path(folder)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(json.dumps([measure(int(rows)) for rows in sys.argv[1:]]))


if __name__ == "__main__":
    main()
