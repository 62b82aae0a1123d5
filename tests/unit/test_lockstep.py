"""Switched generation on tables, where every expected token can be computed by hand."""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import Any

import pytest

from rl_onoff.errors import InvalidField
from workers.backends import load_pair
from workers.host import answer
from workers.wire import Done, ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

TOKENS = ["x", "y", "z", "<eos>"]
X, Y, Z, EOS = range(4)

# A walks x y z x y z ...; B agrees after x and, but for its certainty, after y; after z it wants to end.
A = {"": {"x": 1.0}, "x": {"y": 0.9, "z": 0.1}, "y": {"z": 0.6, "x": 0.4}, "z": {"x": 1.0}}
B = {"": {"x": 1.0}, "x": {"y": 0.9, "z": 0.1}, "y": {"x": 0.9, "z": 0.1}, "z": {"<eos>": 1.0}}


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    return make_pair(tmp_path, A, B)


def make_pair(folder: Path, a: dict[str, Any], b: dict[str, Any]) -> Any:
    for name, rows in (("a", a), ("b", b)):
        (folder / name).write_text(json.dumps({"tokens": TOKENS, "eos": "<eos>", "rows": rows}))
    return load_pair(WorkerSpec("p", "table", "", ModelSpec("a", str(folder / "a")), ModelSpec("b", str(folder / "b"))))


async def run(pair: Any, policy: dict[str, Any], ids: list[int], max_tokens: int, **job: Any) -> Any:
    """Ids, leads, js values and finish reason of a greedy run."""
    out: list[int] = []
    leads, values, reason = "", [], None
    params = job.pop("sampling", SamplingParams(temperature=0))
    async for frame in answer(pair, SwitchGenerate(ids, max_tokens, params, policy, **job)):
        if isinstance(frame, Tokens):
            out += frame.ids
            leads += frame.leads
            values += frame.values["js"]
        elif isinstance(frame, Done):
            reason = frame.finish_reason
    return out, leads, values, reason


# Of (0.6, 0.4) and (0.1, 0.9), whose mean is (0.35, 0.65). After z the supports are disjoint: ln 2.
JS_AFTER_Y = 0.5 * (0.6 * log(0.6 / 0.35) + 0.4 * log(0.4 / 0.65) + 0.1 * log(0.1 / 0.35) + 0.9 * log(0.9 / 0.65))


async def test_start_switch_dwell_switch_back_and_eos(pair: Any) -> None:
    # x: equal rows, A says y. y: js 0.148 > 0.1, B says x. Dwell 1: x: js 0 <= off, A says y; and so on.
    ids, leads, values, reason = await run(pair, {"kind": "divergence", "on": 0.1}, [X], 5)
    assert (ids, leads, reason) == ([Y, X, Y, X, Y], "ababa", "length")
    assert values == pytest.approx([0, JS_AFTER_Y, 0, JS_AFTER_Y, 0], abs=1e-5)

    # Dwell 2: B keeps the token after the switch too, though the rows agree there.
    ids, leads, _, _ = await run(pair, {"kind": "divergence", "on": 0.1, "min_dwell": 2}, [X], 5)
    # and stays at the next y, where js > off; at the x after it A is back.
    assert (ids, leads) == ([Y, X, Y, X, Y], "abbba")

    # Threshold between 0.148 and ln 2: A keeps y -> z, then hands over, and B ends the text.
    ids, leads, values, reason = await run(pair, {"kind": "divergence", "on": 0.2}, [X], 9)
    assert (ids, leads, reason) == ([Y, Z, EOS], "aab", "stop")
    assert values[-1] == pytest.approx(0.693147, abs=1e-6)


async def test_the_first_token_is_judged_too(pair: Any) -> None:
    ids, leads, _, _ = await run(pair, {"kind": "divergence", "on": 0.1}, [Y], 2)
    assert (ids, leads) == ([X, Y], "ba")


async def test_hysteresis_keeps_b_between_off_and_on(tmp_path: Path) -> None:
    # Divergences along B's own path x -> y -> x: 0.148 after y, about 0.003 after x.
    b = {**B, "x": {"y": 0.95, "z": 0.05}}
    pair = make_pair(tmp_path, A, b)
    _, leads, values, _ = await run(pair, {"kind": "divergence", "on": 0.1, "off": 0.001}, [Y], 4)
    assert leads == "bbbb"
    assert min(values) > 0.001
    _, leads, _, _ = await run(pair, {"kind": "divergence", "on": 0.1, "off": 0.05}, [Y], 4)
    assert leads == "baba"


async def test_always_and_schedule(pair: Any) -> None:
    assert (await run(pair, {"kind": "always_a"}, [X], 4))[:2] == ([Y, Z, X, Y], "aaaa")
    assert (await run(pair, {"kind": "always_b"}, [Z], 4))[:2] == ([EOS], "b")
    assert (await run(pair, {"kind": "schedule", "positions": [1, 2]}, [X], 4))[:2] == ([Y, X, Y, Z], "abba")


async def test_budget_caps_the_share_of_b(pair: Any) -> None:
    policy = {"kind": "divergence", "on": 0.1, "max_b_fraction": 0.25}
    ids, leads, _, _ = await run(pair, policy, [X], 12)
    shares = [leads[: i + 1].count("b") / (i + 1) for i in range(12)]
    assert max(shares) <= 0.25
    assert "b" in leads
    assert ids[1] == Z  # the switch the budget refused: A's token


async def test_random_policy_is_keyed_by_seed_and_position(tmp_path: Path) -> None:
    endless = {"": {"x": 0.5, "y": 0.5}}
    pair = make_pair(tmp_path, endless, endless)
    policy = {"kind": "random", "rate": 0.3}
    first = await run(pair, policy, [X], 900, sampling=SamplingParams(seed=4))
    assert first == await run(pair, policy, [X], 900, sampling=SamplingParams(seed=4))
    other = await run(pair, policy, [X], 900, sampling=SamplingParams(seed=5))
    assert first[1] != other[1]
    assert 0.25 < first[1].count("b") / 900 < 0.35


async def test_a_run_resumes_from_any_position_with_the_same_tokens(tmp_path: Path) -> None:
    a = {"": {"x": 0.5, "y": 0.3, "z": 0.2}, "x": {"y": 0.9, "z": 0.1}}
    b = {"": {"x": 0.2, "y": 0.3, "z": 0.5}, "y": {"x": 1.0}}
    pair = make_pair(tmp_path, a, b)
    policy = {"kind": "divergence", "on": 0.05, "off": 0.02, "min_dwell": 3, "max_b_fraction": 0.6}
    params = SamplingParams(seed=11)
    ids, leads, _, _ = await run(pair, policy, [X], 60, sampling=params)
    for cut in (1, 7, 30):
        run_length = len(leads[:cut]) - len(leads[:cut].rstrip(leads[cut - 1]))
        state = {"lead": leads[cut - 1], "run": run_length, "emitted": cut, "by_b": leads[:cut].count("b")}
        rest = await run(pair, policy, [X, *ids[:cut]], 60 - cut, sampling=params, state=state)
        assert rest[:2] == (ids[cut:], leads[cut:])


async def test_ids_are_checked_before_a_model_sees_them(pair: Any) -> None:
    for ids in ([], [-1], [99], [X] * 1001):
        with pytest.raises(InvalidField, match="ids"):
            await run(pair, {"kind": "always_a"}, ids, 1)
