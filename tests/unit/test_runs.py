"""Run folders: locks, torn lines, full disks, other configurations; and rows through a task."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rl_onoff import AsyncClient
from rl_onoff.data import Reader, Row, open_source
from rl_onoff.errors import DataError, RunLocked, RunMismatch, WorkerUnavailable
from rl_onoff.runs import RunFolder, Sample, Task, execute, read_results, summarise
from rl_onoff.runs.loop import Guard, fingerprints
from rl_onoff.runs.tasks import Record
from rl_onoff.runs.tokens import summarise_divergence
from rl_onoff.summary import statistics
from tests.unit.service_double import GENERATED, Body

IDENTITY = {"command": "test", "settings": {"seed": 1}}


def record(row: object, sample: int = 0, **more: Any) -> Record:
    return {"id": str(row), "sample": sample, **more}


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "r", IDENTITY, resume=False), pytest.raises(RunLocked):
        RunFolder.open(tmp_path / "r", IDENTITY, resume=True)
    RunFolder.open(tmp_path / "r", IDENTITY, resume=True).close()


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, IDENTITY, resume=True).close()
    with pytest.raises(RunMismatch, match=r"settings.seed was 1, now 2"):
        RunFolder.open(tmp_path, {"command": "test", "settings": {"seed": 2}}, resume=True)
    with pytest.raises(RunMismatch, match="--resume goes on"):
        RunFolder.open(tmp_path, IDENTITY, resume=False)
    with pytest.raises(RunMismatch, match="written to a folder"):
        RunFolder.open(tmp_path / "out.jsonl", IDENTITY, resume=False)


@pytest.mark.parametrize("torn", [b"", b'{"id": "2", "sam', b'{"id":"2","sample":0}', "é".encode()[:1]])
def test_what_a_kill_leaves_of_a_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    with RunFolder.open(tmp_path, IDENTITY, resume=False) as run:
        run.append([record(1), record(1, 1)])
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(torn)
    assert [each["sample"] for each in read_results(tmp_path)] == [0, 1]
    with RunFolder.open(tmp_path, IDENTITY, resume=True) as run:
        assert run.done == {("", "1", "0"), ("", "1", "1")}
        run.append([record(2)])
    assert [each["id"] for each in read_results(tmp_path)] == ["1", "1", "2"]


def test_a_torn_line_longer_than_a_block(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY, resume=False) as run:
        run.append([record(1)])
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b"x" * 200_000)
    RunFolder.open(tmp_path, IDENTITY, resume=True).close()
    assert [each["id"] for each in read_results(tmp_path)] == ["1"]


def test_a_full_disk_leaves_the_last_row_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(tmp_path, IDENTITY, resume=False) as run:
        run.append([record(1)])
        real = os.pwrite

        def full(file: int, data: bytes, at: int) -> int:
            if at > 30:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, data[:5], at)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            run.append([record(2, text="x" * 100)])
        assert ("", "2", "0") not in run.done
        monkeypatch.undo()
        run.append([record(3)])
    assert [each["id"] for each in read_results(tmp_path)] == ["1", "3"]


class Echo(Task):
    """Answers at once; refuses some rows."""

    command = "echo"
    samples = 2
    models = ()  # type: ignore[assignment]

    def settings(self) -> dict[str, Any]:
        return {}

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        return [record(row.id, sample) for sample in missing]


async def no_models(client: AsyncClient, models: Any, **_: Any) -> list[Any]:
    return []


async def test_only_what_is_missing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_onoff.runs.loop.fingerprints", no_models)
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": "p"}) + "\n" for i in range(50)))
    reader = Reader(open_source(path))
    async with AsyncClient("http://x") as client:
        with RunFolder.open(tmp_path / "r", IDENTITY, resume=False) as run:
            run.append([record(3), record(3, 1), record(4, 1)])
            progress = await execute(client, Echo(), reader, run, concurrency=3)
    keys = [(each["id"], each["sample"]) for each in read_results(tmp_path / "r")]
    assert len(keys) == len(set(keys)) == 100
    assert (progress.rows, progress.results, progress.already) == (49, 97, 3)


async def test_bad_rows_stop_a_run_or_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_onoff.runs.loop.fingerprints", no_models)
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": 1, "prompt": "p"}\n{"id": 2}\n{"id": 3, "prompt": "p"}\n')
    reader = Reader(open_source(path))
    async with AsyncClient("http://x") as client:
        with RunFolder.open(tmp_path / "r", IDENTITY, resume=False) as run:
            with pytest.raises(DataError, match=r"d\.jsonl:2: column 'prompt'"):
                await execute(client, Echo(), reader, run)
            progress = await execute(client, Echo(), reader, run, skip_bad=True)
    assert progress.bad_count == 1
    assert {each["id"] for each in read_results(tmp_path / "r")} == {"1", "3"}


def models(state: str, fingerprint: str | None) -> httpx.Response:
    card = {"name": "m", "pair": "p", "side": "a", "backend": "hf", "state": state, "fingerprint": fingerprint}
    return httpx.Response(200, json={"models": [card], "pairs": []})


async def test_models_that_are_loading_are_waited_for_and_others_are_refused(sleeps: list[float]) -> None:
    answers = [models("starting", None), models("ready", "f1"), models("ready", "f2")]
    transport = httpx.MockTransport(lambda request: answers.pop(0))
    async with AsyncClient("http://x", transport=transport) as client:
        found = await fingerprints(client, ("m",))
        assert found == [{"name": "m", "fingerprint": "f1"}]
        guard = Guard(client, ("m",), found)
        await guard.check()  # a moment ago they were the same
        guard._checked -= 60
        with pytest.raises(RunMismatch, match="serves other models"):
            await guard.check()
    transport = httpx.MockTransport(lambda request: models("failed", None))
    async with AsyncClient("http://x", transport=transport) as client:
        with pytest.raises(WorkerUnavailable):
            await fingerprints(client, ("m",))


async def test_a_run_outlives_a_restart_behind_a_proxy(tmp_path: Path, sleeps: list[float]) -> None:
    cut = Body([b'{"id": '], httpx.RemoteProtocolError("closed")).response("application/json")
    away = [httpx.Response(502, html="<h1>502 Bad Gateway</h1>") for _ in range(12)]
    answers = [models("ready", "f1"), cut, *away, httpx.Response(200, json=GENERATED)]
    transport = httpx.MockTransport(lambda request: answers.pop(0))
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": 1, "prompt": "p"}\n')
    async with AsyncClient("http://x", transport=transport, retry_seconds=600.0, max_retries=8) as client:
        with RunFolder.open(tmp_path / "r", IDENTITY, resume=False) as run:
            await execute(client, Sample(model="m"), Reader(open_source(path)), run, concurrency=1)
    assert [each["text"] for each in read_results(tmp_path / "r")] == ["42"]


def test_a_summary() -> None:
    records = [
        record("p", 0, text="A: 1", reference="1", token_ids=[1, 2], metrics={"perplexity": 2.0}),
        record("p", 1, text="A: 2", reference="1", token_ids=[1, 2], metrics={"perplexity": 8.0}),
        record("q", 0, text="A: 5", reference="5", token_ids=[1], metrics={"perplexity": 1.0}),
        record("q", 1, text="A: 5", reference="5", token_ids=[1], metrics={"perplexity": 1.0}),
        record("r", error={"type": "t", "detail": "d"}),
    ]
    found = summarise(records, ["exact_match:after=A:", "perplexity"])
    assert (found["results"], found["failed"], found["tokens"]) == (4, 1, 6)
    match = found["metrics"]["exact_match:after=A:"]
    assert match["value"] == 0.75
    assert match["pass_at_k"]["1"]["value"] == 0.75
    assert match["pass_at_k"]["2"]["value"] == 1.0
    assert match["majority_vote"]["value"] == 1.0  # of two answers with one vote each the first
    assert found["metrics"]["perplexity"]["value"] == pytest.approx((2.0**2 * 8.0**2) ** (1 / 6))
    # Whatever the order in which requests ended.
    assert summarise(reversed(records), ["exact_match:after=A:", "perplexity"]) == found
    json.dumps(found, allow_nan=False)


def compared(row: object, values: list[float | None], **more: Any) -> Record:
    """A result of `divergence`."""
    ones = [1.0] * len(values)
    columns = {"top1_agree": ones, "top_prob_a": ones, "rank_of_b_in_a": ones}
    tokens = {"token_ids": [0] * len(values), "tokens": ["x"] * len(values), "provenance": {}}
    logprobs = {"logprobs_a": [-1.0] * len(values), "logprobs_b": [None, *[-1.0] * (len(values) - 1)]}
    fields = {"values": {"kl_ab": values}, "negative_infinite": {}, "columns": columns}
    return record(row, **tokens, **logprobs, **fields, **more)


def test_a_run_of_divergence_keeps_so_many_values_and_says_so() -> None:
    rng = np.random.default_rng(0)
    records = [compared(i, rng.uniform(size=1000).tolist()) for i in range(50)]
    found = summarise_divergence(records, kept=2000)
    kl = found["measures"]["kl_ab"]
    assert (kl["count"], kl["percentiles_from"]) == (50_000, 2000)
    assert kl["percentiles"]["50"] == pytest.approx(0.5, abs=0.05)
    assert kl["mean"] == pytest.approx(np.mean([record["values"]["kl_ab"] for record in records]), rel=1e-12)
    assert (found["perplexity"]["b"], found["perplexity"]["a"]) == (None, pytest.approx(np.e))
    json.dumps(found, allow_nan=False)


def test_an_exact_summary_of_infinite_values_and_one_of_a_single_token() -> None:
    values = [0.5, None, 0.25, 0.75]
    kl = summarise_divergence([compared(0, values[:3]), compared(1, values[3:])])["measures"]["kl_ab"]
    exact = statistics([np.inf if value is None else value for value in values])
    assert (kl["infinite"], kl["mean"], kl["stderr"]) == (1, pytest.approx(exact.mean), pytest.approx(exact.stderr))
    assert kl["percentiles"]["50"] == exact.percentiles["50"]
    assert kl["max_at"] == {"item": "0", "position": 1, "token_id": 0, "token": "x"}
    one = summarise_divergence([compared(0, [0.5])])
    assert one["measures"]["kl_ab"]["stderr"] is one["top1"]["stderr"] is one["perplexity"]["a_stderr"] is None
    assert summarise_divergence([record(0, error={})]) == {"results": 0, "failed": 1, "positions": 0}


def test_a_result_that_lacks_columns_is_named() -> None:
    with pytest.raises(DataError, match=r"the result of 7 cannot be summed up: KeyError\('columns'\)"):
        summarise_divergence([{name: value for name, value in compared(7, [0.5]).items() if name != "columns"}])


def test_a_sample_needs_a_reference_when_a_metric_does() -> None:
    assert Sample(model="m", metrics=("length",)).needs == ("prompt",)
    assert Sample(model="m", metrics=("exact_match", "perplexity")).needs == ("prompt", "reference")
