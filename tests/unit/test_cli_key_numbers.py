"""What the command line quotes of a comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rl_onoff.cli.key_numbers import key_numbers
from rl_onoff.schemas.divergence import TokenPlace
from rl_onoff.statistics import ItemColumns, Place, summarise
from rl_onoff.summary_out import divergence_summary


def lines(*deltas: list[float], **more: Any) -> list[str]:
    items = []
    for delta in map(np.array, deltas):
        ones = np.ones(delta.size)
        items.append(ItemColumns({"delta_logp": delta}, -ones, -1.5 * ones, ones, 0.5 * ones, ones))

    def named(at: Place) -> TokenPlace:
        return TokenPlace(item=f"row{at.item}", position=at.position, token_id=7, token="x")

    return [*key_numbers(divergence_summary(summarise(items), named).model_dump() | more)]


def test_infinities_are_counted_and_have_their_sign() -> None:
    said = lines([-math.inf] * 3, [0.1, -math.inf, 0.3])
    assert said[0] == (
        "delta_logp: mean 0.2 ± 0.1 (over tokens) (4 of 6 infinite), median -infinite, 99% below 0.3, "
        "largest 0.3 at 'x' (row1, token 2)"
    )
    assert lines([-math.inf] * 3, [-math.inf])[0].endswith("largest -infinite at 'x' (row0, token 0)")
    assert ", median 0.2, 99% below infinite, largest infinite at 'x'" in lines([0.1, 0.2], [math.inf])[0]


def test_an_error_is_by_item_where_there_are_two() -> None:
    assert lines([0.1, 0.2], [0.3])[-1] == "3 tokens of 2 items; ± one standard error, by item"
    assert lines([0.1, 0.2])[-1] == "2 tokens of 1 items; ± one standard error, over tokens"
    assert lines([0.1, 0.2])[0].startswith("delta_logp: mean 0.15 ± 0.05, median")


def test_a_floor_of_agreement_is_the_least_of_it() -> None:
    floors = {"bfloat16_logits": {name: {"mean": 0.9, "min": 0.5, "max": 1.0} for name in ("js", "topk_overlap:5")}}
    said = [line for line in lines([0.1], noise_floor=floors) if line.startswith("noise")]
    assert said == [
        "noise floor, bfloat16 logits, js: mean 0.9, at most 1",
        "noise floor, bfloat16 logits, topk_overlap:5: mean 0.9, at least 0.5",
    ]
