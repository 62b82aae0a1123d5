"""Generations that share what they have in common are those of runs that share nothing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_onoff import AsyncClient
from rl_onoff.data import Row
from rl_onoff.runs import RunFolder, SwitchTask
from rl_onoff.runs.sharing import Traces
from tests.e2e.running_service import running, table_pair

DEMO = Path(__file__).parents[2] / "demo"
MEASURES = ("js", "kl_ab", "entropy_a", "top_prob_a", "delta_logp_b", "delta_logp", "prob_of_a_in_b", "top_prob_b")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    demo = {"name": "demo", "backend": "hf", "a": {"name": "base", "path": str(DEMO / "base")}}
    demo["b"] = {"name": "rl", "path": str(DEMO / "rl")}
    pairs = [table_pair(folder, "ends"), table_pair(folder, "endless", endless=True), demo]
    with running(folder, {"pairs": pairs}) as service:
        yield service.url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url, retry_seconds=60) as client:
        yield client


def policies(chance: random.Random, count: int) -> Iterator[dict[str, Any]]:
    yield {"kind": "always_a"}
    yield {"kind": "always_b"}
    for _ in range(count):
        yield chance.choice(
            [
                {"kind": "divergence", "on": chance.uniform(0, 0.3), "min_dwell": chance.randint(1, 3)},
                {"kind": "divergence", "measure": "kl_ab", "on": chance.uniform(0, 1), "max_b_fraction": 0.4},
                {"kind": "divergence", "on": 0.2, "off": chance.uniform(0, 0.2), "start": "b"},
                {"kind": "delta_logp", "on": chance.uniform(-1, 1)},
                {"kind": "entropy", "on": chance.uniform(0, 1.2)},
                {"kind": "top_prob", "on": chance.uniform(0, 1)},
                {"kind": "target_floor", "on": chance.uniform(0, 0.5)},
                {"kind": "random", "rate": chance.choice([0.1, 0.5])},
                {"kind": "schedule", "positions": chance.sample(range(20), 4)},
            ]
        )


async def compare(
    client: AsyncClient, folder: Path, rows: list[Row], count: int, *, exact: bool, seed: int = 0, **fields: Any
) -> tuple[int, int, int]:
    """Every policy shared and not; (tokens, those taken over, generations taken over whole)."""
    tokens = shared = whole = 0
    with Traces() as traces:
        for number, policy in enumerate(policies(random.Random(seed), count)):
            plain = SwitchTask(policy=policy, measures=MEASURES, metrics=("length",), **fields)
            sharing = SwitchTask(policy=policy, measures=MEASURES, metrics=("length",), traces=traces, **fields)
            run = folder / str(number)
            with RunFolder.open(run, {"policy": policy}, resume=False) as results:
                for row in rows:
                    samples = range(plain.samples)
                    expected = await plain.work(client, row, samples)
                    found = await sharing.work(client, row, samples)
                    results.append(found)
                    for one, other in zip(expected, found, strict=True):
                        reused, passes = other.pop("shared"), other.pop("passes", None)
                        same(one, other, exact=exact)
                        assert (passes is None) == (reused == len(other["token_ids"]))
                        tokens, shared, whole = (
                            tokens + len(one["token_ids"]),
                            shared + reused,
                            whole + (passes is None),
                        )
            traces.add(run)
    return tokens, shared, whole


def same(one: dict[str, Any], other: dict[str, Any], *, exact: bool) -> None:
    """All of it to the letter; `exact` or not the values, which have the noise of passes of other lengths."""
    if exact:
        assert one == other
        return
    apart = ("divergences", "signals", "switches")
    assert {**one, **dict.fromkeys(apart)} == {**other, **dict.fromkeys(apart)}
    assert finite(one["divergences"]) == pytest.approx(finite(other["divergences"]), rel=1e-3, abs=1e-5)
    assert one["signals"].keys() == other["signals"].keys()
    for name, values in one["signals"].items():
        assert finite(values) == pytest.approx(finite(other["signals"][name]), rel=1e-3, abs=1e-4), name
    places = [[(each["position"], each["from"], each["to"]) for each in of["switches"]] for of in (one, other)]
    assert places[0] == places[1]


def finite(values: list[float | None]) -> list[float]:
    return [math.inf if value is None else value for value in values]


@pytest.mark.parametrize(
    ("pair", "sampling"),
    [
        ("ends", {"max_tokens": 30}),
        ("ends", {}),
        ("ends", {"max_tokens": 30, "ignore_eos": True, "temperature": 0.7}),
        ("endless", {"max_tokens": 20, "stop": ["cab", "bb"], "top_k": 3}),
        ("endless", {"max_tokens": 20, "stop": "aabbaabb"}),
    ],
)
async def test_table_pairs(client: AsyncClient, tmp_path: Path, pair: str, sampling: dict[str, Any]) -> None:
    rows = [Row(f"r{i}", f"d:{i}", prompt="ab"[i % 2]) for i in range(4)]
    fields = {"a": f"{pair}-base", "b": f"{pair}-tuned", "sampling": sampling, "seeds": (1, 5)}
    tokens, shared, whole = await compare(client, tmp_path, rows, 10, exact=True, seed=len(str(sampling)), **fields)
    assert shared > tokens / 4
    assert whole


@pytest.mark.slow
async def test_the_demo_pair(client: AsyncClient, tmp_path: Path) -> None:
    problems = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()[:2]]
    rows = [Row(each["id"], "d", prompt=each["prompt"], reference=each["reference"]) for each in problems]
    fields = {"a": "base", "b": "rl", "sampling": {"max_tokens": 100, "stop": ["\nQ"]}}
    tokens, shared, whole = await compare(client, tmp_path, rows, 8, exact=False, **fields)
    assert shared > tokens / 4
    assert whole
