"""The demo's arithmetic: right and wrong, standard errors, the words under the table, and the requests it makes."""

from __future__ import annotations

import io
import json
import math
import socket
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from rl_onoff import AsyncClient
from rl_onoff.cli import measurement
from rl_onoff.cli.child import choose_port
from rl_onoff.cli.measurement import Condition, Problem, Run
from rl_onoff.errors import ConfigurationError, InternalError
from tests.unit.service_double import SWITCHED, Service, problem

PROBLEM = Problem("demo-0000", "Q: 49-8=", "41")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("\n1 so work it out: 49-8=41\nA: 41", True),
        ("\nA: 40\nA: 41 ", True),
        ("\nA: 41\nA: 40", False),
        ("41", False),
        ("A: 410", False),
        ("", False),
    ],
)
def test_the_answer_is_what_follows_the_last_mark(text: str, right: bool) -> None:
    assert PROBLEM.solved_by(text) is right


def test_standard_errors() -> None:
    runs = [Run(right=i < 30, tokens=10 + i % 7, by_b=i % 3) for i in range(40)]
    condition = Condition("c", runs)
    assert condition.accuracy.value == 0.75
    assert condition.accuracy.error == pytest.approx(math.sqrt(0.75 * 0.25 / 40), rel=0.02)
    assert Condition("perfect", [Run(True, 5, 0)] * 50).accuracy.error == pytest.approx(0.026, abs=0.001)
    rng = np.random.default_rng(0)
    tokens, by_b = np.array([r.tokens for r in runs]), np.array([r.by_b for r in runs])
    picks = rng.integers(40, size=(4000, 40))
    bootstrap = (by_b[picks].sum(1) / tokens[picks].sum(1)).std()
    assert condition.b_share.value == pytest.approx(by_b.sum() / tokens.sum())
    assert condition.b_share.error == pytest.approx(bootstrap, rel=0.06)
    assert Condition("all b", [Run(True, 5, 5)] * 3).b_share == measurement.Estimate(1.0, 0.0)


def test_the_table_and_its_words() -> None:
    def condition(name: str, right: int, by_b: int) -> Condition:
        return Condition(name, [Run(i < right, 10, by_b) for i in range(10)])

    conditions = [condition("A", 2, 0), condition("B", 8, 10), condition("switched", 7, 1), condition("random", 2, 1)]
    out = io.StringIO()
    Console(file=out, width=100).print(measurement.table(conditions))
    assert "20.0 ± 12.1" in out.getvalue()
    words = measurement.in_words(conditions)
    assert words == (
        "With B leading 10.0% of the tokens, those where the models disagree, A recovers 83% of the gap to B; "
        "with as many at random 0%."
    )
    assert "no gap" in measurement.in_words([conditions[0], conditions[0], *conditions[2:]])


def test_problems_and_threshold_are_read(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{i}", "prompt": "Q", "solution": "s", "reference": str(i)} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    assert measurement.read_problems(path, 2) == [Problem("p0", "Q", "0"), Problem("p1", "Q", "1")]
    with pytest.raises(ConfigurationError, match="holds 3 problems, 4 are needed"):
        measurement.read_problems(path, 4)
    assert measurement.read_threshold(tmp_path / "results.json") == 0.1
    (tmp_path / "results.json").write_text('{"recommended_threshold": 0.2}', encoding="utf-8")
    assert measurement.read_threshold(tmp_path / "results.json") == 0.2


async def test_conditions_share_their_seeds_and_random_takes_the_measured_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        kind = json.loads(request.content)["policy"]["kind"]
        leads = {"always_a": "aaaa", "always_b": "bbbb"}.get(kind, "aaba")
        return httpx.Response(200, json=SWITCHED | {"leads": leads, "text": "A: 41"})

    service = Service(answer)
    monkeypatch.setattr(measurement, "AsyncClient", partial(AsyncClient, transport=service.transport))
    advanced: list[None] = []
    conditions = await measurement.measure("http://s", [PROBLEM] * 5, 0.2, lambda: advanced.append(None))
    assert len(advanced) == len(service.requests) == 20
    sent: list[dict[str, Any]] = [json.loads(request.content) for request in service.requests]
    by_kind = {kind: [body for body in sent if body["policy"]["kind"] == kind] for kind in ("always_a", "random")}
    seeds = [{body["sampling"]["seed"] for body in bodies} for bodies in by_kind.values()]
    assert seeds == [set(range(1000, 1005))] * 2
    assert {body["policy"]["rate"] for body in by_kind["random"]} == {0.25}
    assert [condition.b_share.value for condition in conditions] == [0.0, 1.0, 0.25, 0.25]
    assert all(condition.accuracy.value == 1.0 for condition in conditions)


async def test_a_request_that_fails_is_what_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(problem(500, "internal-error"))
    monkeypatch.setattr(measurement, "AsyncClient", partial(AsyncClient, transport=service.transport))
    with pytest.raises(InternalError, match="it is internal-error"):
        await measurement.measure("http://s", [PROBLEM] * 5, 0.2, lambda: None)


def test_a_port_is_kept_or_found() -> None:
    assert choose_port(4711) == 4711
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = choose_port(0)
        assert found != taken.getsockname()[1]
    assert 1024 <= found < 65536
