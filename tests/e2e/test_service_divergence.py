"""What a comparison says beside its values: statistics, noise floor, provenance."""

from __future__ import annotations

import math
from typing import Any

import httpx
import numpy as np
import pytest

from rl_onoff.schemas import DivergenceResponse

ITEMS = [{"prompt": "b", "solution": "ab"}, {"prompt": "b", "solution": "abacab"}, {"prompt": "a", "solution": "bac"}]


def compared(http: httpx.Client, **body: Any) -> DivergenceResponse:
    response = http.post("/divergence", json={"items": ITEMS} | body)
    assert response.status_code == 200, response.text
    return DivergenceResponse.model_validate_json(response.content)


def test_a_summary_holds_what_papers_print(http: httpx.Client) -> None:
    answer = compared(http, measures=["js", "tv", "topk_overlap:2"])
    made = answer.summary
    assert made is not None
    assert (made.items, made.positions) == (3, 11)
    tv = np.concatenate([item.values["tv"] for item in answer.items]).astype(float)
    found = made.measures["tv"]
    assert found.mean == pytest.approx(tv.mean())
    assert found.clustered_stderr is not None
    # After an "a" the total variation is 0.6, elsewhere 0.2: the first "a" of the request is its second token.
    assert tv.max() == pytest.approx(0.6)
    assert found.max_at is not None
    place = (found.max_at.item, found.max_at.position, found.max_at.token_id, found.max_at.token)
    assert place == (0, 1, 1, "b")
    assert made.top1 is not None
    assert made.top1.value == made.top1_agreement
    # There B's best, c, is A's second; elsewhere A's best is B's.
    after_a = float(np.mean(tv > 0.4))
    assert made.shifts["marginal"].value == pytest.approx(after_a)
    assert made.shifts["unshifted"].value == pytest.approx(1 - after_a)
    assert made.shifts["shifted"].value == 0
    assert [(b.low, b.count) for b in made.by_confidence if b.count] == [(0.5, 11)]
    assert sum(bucket.count for bucket in made.by_position) == 11
    assert made.by_confidence[0].means == {"js": None, "tv": None, "topk_overlap:2": None}
    assert made.rms_delta_p is not None
    assert made.mean_delta_p is not None
    assert made.rms_delta_p.value > abs(made.mean_delta_p.value)
    one = answer.items[1].summary
    assert one is not None
    assert one.measures["tv"].clustered_stderr is None
    assert one.measures["tv"].max_at is not None
    assert one.measures["tv"].max_at.item == 1


def test_one_item_is_all_items(http: httpx.Client) -> None:
    answer = compared(http, items=[{"prompt": "b", "solution": "abac"}])
    assert answer.summary is not None
    assert answer.summary == answer.items[0].summary
    assert (answer.summary.items, answer.summary.positions) == (1, 4)


def test_summaries_do_not_depend_on_the_order_of_the_models_they_are_of(http: httpx.Client) -> None:
    plain, turned = compared(http), compared(http, a="tuned", b="base")
    assert plain.summary is not None
    assert turned.summary is not None
    assert turned.summary.measures["kl_ab"].mean == pytest.approx(plain.summary.measures["kl_ba"].mean)
    assert plain.summary.perplexity.ratio is not None
    assert turned.summary.perplexity.ratio == pytest.approx(1 / plain.summary.perplexity.ratio)
    assert [b.count for b in turned.summary.by_confidence] != [b.count for b in plain.summary.by_confidence]


def test_what_was_not_asked_for_is_not_there(http: httpx.Client) -> None:
    answer = compared(http, measures=["js"], summary=False)
    assert answer.summary is answer.noise_floor is answer.items[0].summary is None
    assert answer.items[0].values.keys() == {"js"}


def test_the_noise_floor_is_that_of_rounded_logits(http: httpx.Client) -> None:
    for models in ({}, {"a": "tuned", "b": "base"}):
        answer = compared(http, measures=["js", "kl_ab"], noise_floor=True, **models)
        assert answer.noise_floor is not None
        floor = answer.noise_floor.bfloat16_logits["js"]
        assert floor.count == 11
        assert floor.mean is not None
        assert 1e-9 < floor.mean < 1e-4
    bits = compared(http, measures=["js"], noise_floor=True, units="bits", a="tuned", b="base").noise_floor
    assert bits is not None
    assert bits.bfloat16_logits["js"].mean == pytest.approx(floor.mean / math.log(2))


def test_every_measure_has_a_floor_or_a_reason(http: httpx.Client) -> None:
    asked = ["js", "delta_logp", "renyi:2", "renyi_ba:0.5", "topk_overlap:5", "entropy_a", "entropy_b", "top_prob_b"]
    made = compared(http, measures=asked, noise_floor=True, summary=False).noise_floor
    assert made is not None
    told = ["js", "delta_logp", "renyi:2", "renyi_ba:0.5", "topk_overlap:5", "entropy_a"]
    assert [*made.pass_shape] == [*made.bfloat16_logits] == told
    assert [*made.absent] == ["entropy_b", "top_prob_b"]
    # A table's rows are the same in passes of any shape.
    for name in told:
        floor = made.pass_shape[name]
        assert (floor.count, floor.min, floor.max) == (11, *((1.0, 1.0) if name == "topk_overlap:5" else (0.0, 0.0)))
    # How far an entropy moves, not how large it is.
    assert 0 < made.bfloat16_logits["entropy_a"].mean < 1e-2  # type: ignore[operator]
    assert made.bfloat16_logits["delta_logp"].min >= 0  # type: ignore[operator]
    only = compared(http, measures=["entropy_b"], noise_floor=True).noise_floor
    assert only is not None
    assert (only.pass_shape, only.bfloat16_logits, [*only.absent]) == ({}, {}, ["entropy_b"])


def test_the_noise_floor_is_of_the_requests_items_and_temperature(http: httpx.Client) -> None:
    warm, cold = (compared(http, measures=["js"], noise_floor=True, temperature=t).noise_floor for t in (1.0, 0.05))
    assert warm is not None
    assert cold is not None
    assert cold.bfloat16_logits["js"].max != warm.bfloat16_logits["js"].max
    for floor in (warm.pass_shape["js"], warm.bfloat16_logits["js"]):
        assert floor.clustered_stderr is not None
        assert floor.max_at is not None
    place = warm.bfloat16_logits["js"].max_at
    assert place is not None
    assert ITEMS[place.item]["solution"][place.position] == place.token


def test_the_noise_floor_of_delta_logp_has_the_requests_direction(http: httpx.Client) -> None:
    """It is of the request's A, whichever of the worker's models that is: of B's rows when the order is turned."""
    of_a, of_b = (
        compared(http, measures=["delta_logp", "kl_ab"], noise_floor=True, **models).noise_floor
        for models in ({"a": "base", "b": "tuned"}, {"a": "tuned", "b": "base"})
    )
    assert of_a is not None
    assert of_b is not None
    assert of_a.bfloat16_logits["delta_logp"] != of_b.bfloat16_logits["delta_logp"]


def test_provenance_names_widths_kernel_and_devices(http: httpx.Client) -> None:
    made = compared(http, merge_eos=True).provenance
    assert (made.vocab_size, made.logit_columns) == (7, [7, 7])
    assert made.kernel in ("streaming float32", "reference float64")
    assert (made.merge_eos, made.merged_ids) == (True, [5])
    assert len(made.devices) == 2


@pytest.mark.parametrize(
    ("measure", "says"),
    [("topk_overlap:1001", "from 1 to 1000 in topk_overlap:K, not 1001"), ("renyi:1e-2", "in renyi:ALPHA, not 1e-2")],
)
def test_a_wrong_parameter_is_told_with_its_limits(http: httpx.Client, measure: str, says: str) -> None:
    refused = http.post("/divergence", json={"items": ITEMS, "measures": ["js", measure]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("measures.1: ")
    assert refused.json()["detail"].endswith(says)
