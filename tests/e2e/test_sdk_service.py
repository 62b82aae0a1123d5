"""The SDK and CLI against the real service: its processes, its worker, models given as tables."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from rl_onoff import AsyncClient, Client
from rl_onoff.divergence import js
from rl_onoff.errors import ContextExceeded, NotAcceptable, OnOffError, StreamTruncated, TransportError, UnknownModel
from rl_onoff.policy import DivergencePolicy, SchedulePolicy
from rl_onoff.schemas import GenerateToken, Switch, SwitchResponse, SwitchToken

START_SECONDS = 60

TABLE = {"tokens": ["Q", "x", "y", "é", "<eos>"], "eos": "<eos>", "delay": 0.002, "max_len": 2000}
ROWS_A = {"": {"x": 0.9, "y": 0.1}, "x": {"x": 0.5, "y": 0.4, "é": 0.1}, "y": {"x": 0.999, "<eos>": 0.001}}
ROWS_B = ROWS_A | {"x": {"x": 0.1, "y": 0.9}}
ITEM = {"prompt": "Q", "solution": "xyxé"}


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`rl-onoff serve` on two tables; its process and address."""
    for name, rows in (("a", ROWS_A), ("b", ROWS_B)):
        (folder / f"{name}.json").write_text(json.dumps(TABLE | {"rows": rows}), encoding="utf-8")
    command = [sys.executable, "-m", "rl_onoff.cli", "serve", "--a", "a.json", "--b", "b.json"]
    process = subprocess.Popen([*command, "--backend", "table", "--port", "0"], cwd=folder, stderr=subprocess.PIPE)
    assert process.stderr is not None
    return process, address(process.stderr)


def address(stderr: IO[bytes]) -> str:
    """Where the service says it listens, once it is ready."""
    deadline, said = time.monotonic() + START_SECONDS, b""
    while not (found := re.search(rb"serving on (http://\S+)", said)):
        assert select.select([stderr], [], [], max(0.0, deadline - time.monotonic()))[0], said
        chunk = os.read(stderr.fileno(), 65536)
        assert chunk, said
        said += chunk
    return found[1].decode()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, where = start(tmp_path_factory.mktemp("service"))
    yield where
    stop(process)
    assert process.returncode == 0


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def test_what_is_served(client: Client) -> None:
    assert client.health().status == "ok"
    assert client.ready().ready
    assert client.version().version
    served = client.models()
    assert [model.state for model in served.models] == ["ready", "ready"]
    assert (served.pairs[0].a, served.pairs[0].b) == ("pair-a", "pair-b")


def test_generate(client: Client) -> None:
    whole = client.generate("Q", model="pair-a", max_tokens=30, seed=5, logprobs=2)
    with client.generate("Q", model="pair-a", max_tokens=30, seed=5, logprobs=2, stream=True) as stream:
        tokens = [event for event in stream if isinstance(event, GenerateToken)]
    assert "".join(token.text for token in tokens) == whole.results[0].text == stream.result.results[0].text
    assert [token.id for token in tokens] == whole.results[0].token_ids
    assert whole.results[0].logprobs is not None
    assert len(whole.results[0].logprobs.top[0].ids) == 2


def test_distributions_as_json_and_as_arrays(client: Client) -> None:
    listed = client.distributions([ITEM, ITEM], model="pair-a", top_k=2)
    full = client.distributions([ITEM, ITEM], model="pair-a", full=True)
    best = client.distributions([ITEM, ITEM], model="pair-a", full=True, top_k=2)
    short = client.distributions([ITEM, ITEM], model="pair-a", full=True, dtype="bfloat16")
    assert len(listed.items) == len(full) == len(best) == len(short) == 2
    for item, rows, top, half in zip(listed.items, full, best, short, strict=True):
        assert rows.values.shape == (4, listed.vocab_size)
        assert np.exp(rows.values).sum(-1) == pytest.approx(1, abs=1e-6)
        assert rows.token_ids.tolist() == item.token_ids
        assert rows.token_logprobs == pytest.approx(np.array(item.token_logprobs, dtype=float))
        assert rows.metadata["vocab_size"] == listed.vocab_size
        assert top.ids is not None
        assert top.ids.tolist() == [position.ids for position in item.top]
        finite = np.isfinite(rows.values)
        assert half.values.dtype == np.float32
        assert (np.isfinite(half.values) == finite).all()
        assert half.values[finite] == pytest.approx(rows.values[finite], rel=2**-8)


def test_whole_rows_as_json_are_refused_with_the_way_to_get_them(client: Client) -> None:
    with pytest.raises(NotAcceptable, match="safetensors"):
        client.distributions([ITEM], model="pair-a")


def test_divergence_is_that_of_the_rows(client: Client) -> None:
    rows = [client.distributions([ITEM], model=name, full=True)[0].values for name in ("pair-a", "pair-b")]
    answer = client.divergence([ITEM], measures=["js", "kl_ab"])
    assert answer.items[0].values["js"] == pytest.approx(js(*rows).tolist(), abs=1e-7)
    assert answer.items[0].values["kl_ab"][1] is None  # B excludes é after x
    assert answer.items[0].infinite == {"kl_ab": [1, 3]}


def test_switched_streams_add_up_and_repeat(client: Client) -> None:
    policy = DivergencePolicy(on=0.1, min_dwell=2)
    with client.switch_generate("Q", policy=policy, max_tokens=60, seed=7, stream=True) as stream:
        events = list(stream)
    result = stream.result
    tokens = [event for event in events if isinstance(event, SwitchToken)]
    assert events[-1] is result
    assert [token.index for token in tokens] == list(range(len(result.token_ids)))
    assert "".join(token.text for token in tokens) == result.text
    assert "".join(token.lead for token in tokens) == result.leads
    assert [token.divergence for token in tokens] == result.divergences
    assert [event for event in events if isinstance(event, Switch)] == result.switches
    again = client.switch_generate("Q", policy=policy, max_tokens=60, seed=7)
    assert (again.token_ids, again.leads) == (result.token_ids, result.leads)
    assert 0 < result.b_fraction < 1


def test_a_run_replays_from_its_receipt_and_its_schedule(client: Client) -> None:
    first = client.switch_generate("Q", max_tokens=40)
    receipt = first.receipt
    again = client.switch_generate(prompt_ids=receipt.prompt_ids, policy=receipt.policy, sampling=receipt.sampling)
    assert again.token_ids == first.token_ids
    positions = [index for index, lead in enumerate(first.leads) if lead == "b"]
    schedule = SchedulePolicy(kind="schedule", positions=positions)
    replay = client.switch_generate("Q", policy=schedule, max_tokens=40, seed=first.seed)
    assert (replay.token_ids, replay.leads) == (first.token_ids, first.leads)


async def test_many_at_once(url: str) -> None:
    async with AsyncClient(url) as client:

        async def streamed(seed: int) -> SwitchResponse:
            async with await client.switch_generate("Q", max_tokens=20, seed=seed, stream=True) as stream:
                return await stream.until_done()

        together = await asyncio.gather(*(streamed(seed) for seed in range(24)))
        alone = [await client.switch_generate("Q", max_tokens=20, seed=seed) for seed in range(24)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_leaving_early_leaves_the_service_able(client: Client) -> None:
    for seed in range(20):
        with client.switch_generate("Q", max_tokens=1900, ignore_eos=True, seed=seed, stream=True) as stream:
            next(iter(stream))
    assert client.switch_generate("Q", max_tokens=3).usage.completion_tokens <= 3


@pytest.mark.parametrize(
    ("fields", "cls"),
    [({"a": "nobody"}, UnknownModel), ({"max_tokens": 1_000_000}, ContextExceeded)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_typed_and_come_before_a_stream(
    client: Client, fields: dict[str, Any], cls: type[OnOffError], stream: bool
) -> None:
    with pytest.raises(cls) as caught:
        client.switch_generate("Q", stream=stream, **fields)  # type: ignore[call-overload]
    assert caught.value.request_id


def test_the_command_line(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl_onoff.cli", "switch", "--url", url, "--seed", "3", "--max-tokens", "30"]
    text = subprocess.run([*command, "Q"], cwd=tmp_path, capture_output=True, text=True, check=True)
    piped = subprocess.run([*command, "-"], cwd=tmp_path, input="Q\n", capture_output=True, text=True, check=True)
    whole = subprocess.run([*command, "Q", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    result = SwitchResponse.model_validate_json(whole.stdout)
    assert text.stdout == piped.stdout == result.text + "\n"
    assert f"seed {result.seed}" in text.stderr


def test_a_service_that_is_killed_truncates_its_streams(tmp_path: Path) -> None:
    process, where = start(tmp_path)
    try:
        with Client(where, max_retries=0) as client:
            with client.switch_generate("Q", max_tokens=1900, ignore_eos=True, stream=True) as stream:
                events = iter(stream)
                next(events)
                process.send_signal(signal.SIGKILL)
                with pytest.raises(StreamTruncated):
                    list(events)
            process.wait()
            with pytest.raises(TransportError):
                client.health()
    finally:
        process.kill()
        process.communicate()
