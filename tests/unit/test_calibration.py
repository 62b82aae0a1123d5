"""Thresholds for budgets: the share they would have spent, passes, and what cannot have one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_onoff.errors import DataError, InvalidField
from rl_onoff.runs import calibration
from rl_onoff.runs.calibration import Trace, calibrate, find_threshold, spent, threshold_policy, traces_of
from rl_onoff.runs.study import parse_study
from rl_onoff.runs.tables import by_seed

VALUES = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]]


def traces(values: list[list[float]], signal: str = "js") -> list[Trace]:
    return [Trace(1, 3, [{signal: value} for value in each]) for each in values]


def test_the_threshold_that_would_have_spent_the_share() -> None:
    assert calibrate({"kind": "divergence"}, 0.3, traces(VALUES)) == (0.7, 0.3)
    assert calibrate({"kind": "divergence", "budget": 0.3}, 0.34, traces(VALUES)) == (0.7, 0.3)
    # B leads below it.
    assert calibrate({"kind": "top_prob"}, 0.2, traces(VALUES, "top_prob_a")) == (0.3, 0.2)


@pytest.mark.parametrize("of", ["a", "b"])
def test_the_sign_of_delta_logp(of: str) -> None:
    sign = -1 if of == "a" else 1
    values = [[sign * value for value in each] for each in VALUES]
    assert calibrate({"kind": "delta_logp", "of": of}, 0.3, traces(values, f"delta_logp_{of}")) == (0.7, 0.3)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(1, 3),
)
def test_no_other_threshold_comes_closer(values: list[list[float]], budget: float, dwell: int) -> None:
    fields = {"kind": "divergence", "min_dwell": dwell}
    on, share = calibrate(fields, budget, traces(values))
    shares = {each: spent(threshold_policy(fields, each), traces(values)) for value in values for each in value}
    assert shares[on] == share
    if dwell == 1:  # with a dwell the share need not fall with the threshold
        assert abs(share - budget) == min(abs(each - budget) for each in shares.values())


def test_off_bounds_the_threshold() -> None:
    on, _ = calibrate({"kind": "divergence", "off": 0.85}, 0.9, traces(VALUES))
    assert on == 0.9
    with pytest.raises(InvalidField, match="no threshold is allowed"):
        calibrate({"kind": "divergence", "off": 5.0}, 0.5, traces(VALUES))


def result(row: int, values: list[float | None], leads: str) -> dict[str, Any]:
    ids = list(range(len(values)))
    record = {"id": str(row), "sample": 0, "token_ids": ids, "tokens": ["x"] * len(ids), "prompt_ids": [1, 2]}
    record |= {"measure": "js", "divergences": values, "signals": {}, "leads": leads, "seed": 1}
    return record | {"finish_reason": "stop", "max_tokens": 9}


def write(folder: Path, results: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in results))
    return folder


def test_traces_are_the_same_whatever_the_order_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_POSITIONS", 25)
    results = [result(row, [row / 100] * 5, "aaaaa") for row in range(40)]
    policy = threshold_policy({"kind": "divergence"})
    found = traces_of(write(tmp_path / "one", results), policy)
    assert found == traces_of(write(tmp_path / "two", results[::-1]), policy)
    assert len(found) == 5
    (infinite,) = traces_of(write(tmp_path / "inf", [result(1, [None], "a")]), policy)
    assert infinite.signals == [{"js": float("inf")}]


async def test_passes_until_the_share_is_close(tmp_path: Path) -> None:
    """Once B takes over the models are further apart: the first threshold spends too much, the second does not."""
    grown = [value * 1.5 for value in VALUES[1]]
    written: list[Mapping[str, Any]] = []

    async def attempt(number: int, policy: Mapping[str, Any]) -> tuple[Path, float]:
        written.append(policy)
        share = sum(value > policy["on"] for value in VALUES[0] + grown) / 10
        return write(tmp_path / str(number), [result(1, VALUES[0], "aaaaa"), result(2, list(grown), "bbbbb")]), share

    first = write(tmp_path / "first", [result(1, VALUES[0], "aaaaa"), result(2, VALUES[1], "aaaaa")])
    found = await find_threshold({"kind": "divergence", "budget": 0.3}, 0.3, first, attempt)
    assert [(each["expected"], each["reached"]) for each in found["passes"]] == [(0.3, 0.5), (0.3, 0.3)]
    assert (found["on"], found["reached"], found["budget"]) == (pytest.approx(1.05), 0.3, 0.3)
    assert [set(policy) for policy in written] == [{"kind", "on"}] * 2


async def test_the_closest_pass_counts(tmp_path: Path) -> None:
    async def attempt(number: int, policy: Mapping[str, Any]) -> tuple[Path, float]:
        values = [[0.9] * 10, [0.1, *[0.2] * 9], [0.9] * 10, [0.5] * 10][number]
        return write(tmp_path / str(number), [result(1, list(values), "a" * 10)]), [0.5, 0.35, 0.9, 0.9][number]

    first = write(tmp_path / "first", [result(1, VALUES[0], "aaaaa")])
    found = await find_threshold({"kind": "divergence"}, 0.3, first, attempt)
    assert found["reached"] == 0.35


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("{kind: divergence, on: 0.1, budget: 0.1}", "either `on` or a budget"),
        ("{kind: random, rate: 0.1, budget: 0.1}", "random has no threshold"),
        ("{kind: divergence, budget: 1}", "between 0 and 1"),
        ("{kind: divergence, budget: [0.1, a]}", "between 0 and 1"),
        ("{kind: divergence, mesure: js, budget: 0.1}", "Extra inputs"),
    ],
)
def test_what_cannot_have_a_budget(policy: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_study(f"{{data: d, policies: [{policy}]}}")


def test_seeds() -> None:
    study = parse_study("{data: d, seeds: [7, 9], n: 2, metrics: [m], policies: [{kind: entropy, budget: 0.1}]}")
    records = [
        {"id": "x", "sample": sample, "leads": "aabb"[: 2 + sample // 2], "metrics": {"m": float(sample)}}
        for sample in range(4)
    ]
    found = by_seed([*records, {"id": "y", "sample": 3, "error": {}}], study.seeds, study.n, study.metrics)
    assert found == {
        "7": {"share": 0.0, "results": 2, "metrics": {"m": 0.5}},
        "9": {"share": pytest.approx(1 / 3), "results": 2, "metrics": {"m": 2.5}},
    }
    assert study.recorded == ["entropy_a", "js"]
    for wrong in ("seeds: [1, 1]", "seeds: [1], seed: 2"):
        with pytest.raises(DataError, match="seeds"):
            parse_study(f"{{data: d, {wrong}, policies: [{{kind: always_b}}]}}")
