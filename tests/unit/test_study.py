"""Studies: what their file says, and the table they end in."""

from __future__ import annotations

import pytest

from rl_onoff.errors import DataError
from rl_onoff.runs.study import parse_study
from rl_onoff.runs.tables import table

STUDY = """
data: d.jsonl
directions: [a_to_b, b_to_a]
policies:
  - {kind: divergence, on: [0.1, 0.2], off: 0.05}
  - {kind: random, rate: 0.5}
"""


def test_lists_are_a_grid_and_on_is_no_boolean() -> None:
    found = list(parse_study(STUDY).conditions())
    assert [condition.name for condition in found] == [
        "a_alone",
        "b_alone",
        "a_to_b-divergence-on=0.1-off=0.05",
        "a_to_b-divergence-on=0.2-off=0.05",
        "a_to_b-random-rate=0.5",
        "b_to_a-divergence-on=0.1-off=0.05",
        "b_to_a-divergence-on=0.2-off=0.05",
        "b_to_a-random-rate=0.5",
    ]
    assert found[3].policy == {"kind": "divergence", "on": 0.2, "off": 0.05}
    assert [condition.control for condition in found] == [False] * 2 + [True] * 6


def test_a_field_that_is_a_list_is_one_in_a_list() -> None:
    study = parse_study("{data: d, chat: true, policies: [{kind: schedule, positions: [[1, 2], [3]]}]}")
    assert study.chat is True
    assert [condition.policy["positions"] for condition in list(study.conditions())[2:]] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "no YAML"),
        ("[]", "valid dictionary"),
        ("{data: d, policies: []}", "policies: List should have at least 1 item"),
        ("{data: d, policies: [{kind: entropi}]}", "Did you mean 'entropy'?"),
        ("{data: d, policies: [{kind: random, rate: 2}]}", "less than or equal to 1"),
        ("{data: d, policies: [{kind: random, rate: [0.5, 0.5]}]}", "a_to_b-random-rate=0.5 is there twice"),
        ("{data: d, policies: [{kind: always_b}], sampels: 3}", "sampels: Extra inputs"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_study(text)
    assert said in str(raised.value)


def test_the_table() -> None:
    def record(name: str, value: float | None) -> dict[str, object]:
        found = {} if value is None else {"metrics": {"m": {"value": value, "low": 0.0, "high": 1.0, "problems": 3}}}
        summary = {"results": 3, "failed": 0, "tokens": 9, **found}
        return {"id": name, "direction": "a_to_b", "policy": {}, "control_of": None, "share": 0.5, "summary": summary}

    records = [record("a_alone", 0.25), record("b_alone", 0.75), record("x", 0.5), record("all_failed", None)]
    lines = table(records, ["m"])
    assert [line["m recovery"] for line in lines] == [0.0, 1.0, 0.5, None]
    assert all(line.keys() == lines[0].keys() for line in lines)
