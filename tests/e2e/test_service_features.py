"""What the endpoints answer, on tables whose numbers can be worked out by hand."""

from __future__ import annotations

import math
import time
from typing import Any

import httpx
import numpy as np
import pytest

from rl_onoff.philox import derive_seed
from rl_onoff.schemas import (
    DistributionsResponse,
    DivergenceResponse,
    GenerateResponse,
    ModelsResponse,
    SwitchResponse,
)
from rl_onoff.tensors import read_distributions

GREEDY = {"temperature": 0, "max_tokens": 6}


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_service_says_what_it_is(http: httpx.Client) -> None:
    models = ModelsResponse.model_validate(http.get("/models").json())
    assert [(m.name, m.side, m.state, m.vocab_size) for m in models.models] == [
        ("base", "a", "ready", 7),
        ("tuned", "b", "ready", 7),
    ]
    assert (models.pairs[0].name, models.pairs[0].a, models.pairs[0].b) == ("pair", "base", "tuned")
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"ready": True, "pairs": {"pair": "ready"}}
    assert http.get("/version").json()["version"]
    assert 'href="/openapi.json"' in http.get("/").text  # what the page shows of the pair: tests/web


def test_the_openapi_document_knows_problems_and_no_other_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in ("/generate", "/distributions", "/divergence", "/switch-generate"):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("Request")
        assert list(operation["responses"]["422"]["content"]) == ["application/problem+json"]


def test_every_answer_carries_a_request_id(http: httpx.Client) -> None:
    assert http.get("/health", headers={"X-Request-Id": "mine-1.2_3"}).headers["x-request-id"] == "mine-1.2_3"
    made = http.get("/nowhere", headers={"X-Request-Id": "no good\u00e9".encode()})
    assert made.json()["request_id"] == made.headers["x-request-id"] != "no good"


def test_small_answers_do_not_wait_for_acknowledgements(http: httpx.Client) -> None:
    def seconds() -> float:
        begin = time.perf_counter()
        http.get("/health")
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(20)) < 0.02  # Nagle's algorithm would make it 0.04


def test_generate_is_greedy_at_temperature_zero(http: httpx.Client) -> None:
    answer = post(http, "/generate", model="base", prompt="b", sampling=GREEDY)
    (result,) = GenerateResponse.model_validate(answer).results
    assert (result.text, result.token_ids, result.finish_reason) == ("ababab", [0, 1, 0, 1, 0, 1], "length")
    answer = post(http, "/generate", model="tuned", prompt_ids=[1], sampling=GREEDY)
    assert answer["results"][0]["text"] == "acacac"
    assert answer["usage"] | {"prompt_tokens": 1, "completion_tokens": 6, "b_forwards": 6} == answer["usage"]


def test_generate_reports_the_seeds_that_repeat_it(http: httpx.Client) -> None:
    sampling = {"max_tokens": 8, "n": 3}
    first = post(http, "/generate", model="base", prompts=["a", "b"], sampling=sampling)
    seed = first["results"][0]["seed"]
    assert [(r["prompt_index"], r["index"], r["seed"]) for r in first["results"]] == [
        (p, i, derive_seed(seed, p, i)) for p in range(2) for i in range(3)
    ]
    again = post(http, "/generate", model="base", prompts=["a", "b"], sampling={**sampling, "seed": seed})
    assert again["results"] == first["results"]
    fifth = first["results"][4]
    alone = post(http, "/generate", model="base", prompt="b", sampling={"max_tokens": 8, "seed": fifth["seed"]})
    assert alone["results"][0]["token_ids"] == fifth["token_ids"]


def test_generate_logprobs_and_metrics(http: httpx.Client) -> None:
    answer = post(
        http,
        "/generate",
        model="base",
        prompts=["b", "b"],
        sampling={"temperature": 0, "max_tokens": 2},
        logprobs=2,
        metrics=["exact_match", "perplexity"],
        references=[" ab ", "no"],
    )
    first, second = answer["results"]
    assert first["logprobs"]["token_logprobs"] == pytest.approx([math.log(0.5), math.log(0.7)], rel=1e-6)
    assert first["logprobs"]["top"][1] == {"ids": [1, 2], "values": pytest.approx([math.log(0.7), math.log(0.3)])}
    assert (first["metrics"]["exact_match"], second["metrics"]["exact_match"]) == (1.0, 0.0)
    assert answer["metrics"]["exact_match"] == 0.5
    assert answer["metrics"]["perplexity"] == pytest.approx((0.5 * 0.7) ** -0.5)
    plain = post(http, "/generate", model="base", prompt="b", sampling=GREEDY, metrics=["perplexity"])
    assert plain["results"][0]["logprobs"] is None
    assert plain["results"][0]["metrics"]["perplexity"] > 1


def test_an_eos_token_is_in_the_ids_and_not_in_the_text(http: httpx.Client) -> None:
    sampling: dict[str, Any] = {"max_tokens": 60, "n": 4, "seed": 3}
    results = post(http, "/generate", model="base", prompt="b", sampling=sampling)["results"]
    ended = [result for result in results if result["finish_reason"] == "stop"]
    assert ended
    for result in ended:
        assert result["token_ids"][-1] == 5
        assert len(result["text"]) == len(result["token_ids"]) - 1
    sampling["ignore_eos"] = True
    results = post(http, "/generate", model="base", prompt="b", sampling=sampling)["results"]
    assert all(len(result["token_ids"]) == 60 for result in results)


@pytest.mark.parametrize(
    ("stop", "text", "ids"),
    [("ca", "a", [0, 2, 0]), (["zz", "caca"], "a", [0, 2, 0, 2, 0]), ("a", "", [0]), ("x", "acacac", [0, 2] * 3)],
)
def test_stop_strings_end_the_text_before_them(
    http: httpx.Client, stop: str | list[str], text: str, ids: list[int]
) -> None:
    sampling = {**GREEDY, "stop": stop}
    (result,) = post(http, "/generate", model="tuned", prompt="b", sampling=sampling)["results"]
    assert (result["text"], result["token_ids"]) == (text, ids)
    assert result["finish_reason"] == ("stop" if stop != "x" else "length")
    switched = post(http, "/switch-generate", prompt="b", policy={"kind": "always_b"}, sampling=sampling)
    assert (switched["text"], switched["token_ids"], switched["leads"]) == (text, ids, "b" * len(ids))


def test_max_tokens_defaults_to_what_fits(http: httpx.Client) -> None:
    answer = post(http, "/generate", model="base", prompt="b" * 95, sampling={"ignore_eos": True})
    assert len(answer["results"][0]["token_ids"]) == 5


def test_distributions_of_the_top_k(http: httpx.Client) -> None:
    items = [{"prompt": "b", "solution": "ab"}, {"prompt_ids": [1], "solution_ids": [3]}]
    answer = post(http, "/distributions", model="base", items=items, top_k=2, kind="probs")
    first, second = DistributionsResponse.model_validate(answer).items
    assert (first.token_ids, first.tokens) == ([0, 1], ["a", "b"])
    assert [(top.ids, top.values) for top in first.top] == [
        ([0, 1], pytest.approx([0.5, 0.3])),
        ([1, 2], pytest.approx([0.7, 0.3])),
    ]
    assert first.token_logprobs == pytest.approx([math.log(0.5), math.log(0.7)])
    assert second.token_logprobs == [None]
    assert first.entropy[1] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))
    assert answer["cache"] == {"hit_rows": 0, "computed_rows": 3}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_distributions_as_tensors(http: httpx.Client, dtype: str, tolerance: float) -> None:
    body = {"model": "base", "items": [{"prompt": "b", "solution": "ab"}, {"prompt": "b", "solution": "a"}]}
    headers = {"Accept": "application/vnd.safetensors"}
    response = http.post("/distributions", json={**body, "dtype": dtype, "kind": "probs"}, headers=headers)
    assert response.headers["content-type"] == "application/vnd.safetensors"
    first, second = read_distributions(response.content)
    assert first.values == pytest.approx(
        np.array([[0.5, 0.3, 0.1, 0, 0, 0.1, 0], [0, 0.7, 0.3, 0, 0, 0, 0]]), abs=tolerance
    )
    assert (first.token_ids.tolist(), second.values.shape) == ([0, 1], (1, 7))
    assert first.metadata["tokens"] == [["a", "b"], ["a"]]
    assert first.metadata["vocab_size"] == 7
    response = http.post("/distributions", json={**body, "dtype": dtype, "top_k": 2, "kind": "probs"}, headers=headers)
    top = read_distributions(response.content)[0]
    assert top.ids is not None
    assert top.ids.tolist() == [[0, 1], [1, 2]]
    assert top.values == pytest.approx(np.array([[0.5, 0.3], [0.7, 0.3]]), abs=tolerance)
    assert top.tail == pytest.approx([0.2, 0.0], abs=1e-6)  # of the rows, not of what their values were rounded to
    assert (top.metadata["top_k"], top.metadata["dtype"]) == (2, dtype)
    assert top.metadata["provenance"] == first.metadata["provenance"]


ITEMS = [{"prompt": "b", "solution": "ab"}, {"messages": [{"role": "user", "content": "b"}], "solution": "d"}]
P, Q = np.array([0.7, 0.3]), np.array([0.1, 0.9])
KL_AB, KL_BA = float(np.sum(P * np.log(P / Q))), float(np.sum(Q * np.log(Q / P)))


def test_divergence_values_summaries_and_infinities(http: httpx.Client) -> None:
    measures = ["js", "kl_ab", "kl_ba", "delta_logp", "entropy_a"]
    answer = DivergenceResponse.model_validate(post(http, "/divergence", items=ITEMS, measures=measures))
    first, second = answer.items
    mean = (P + Q) / 2
    js = float(np.sum(P * np.log(P / mean) + Q * np.log(Q / mean))) / 2
    assert first.values["js"][1] == pytest.approx(js, rel=1e-6)
    assert first.values["kl_ab"] == [None, pytest.approx(KL_AB, rel=1e-6)]
    assert first.infinite == {"kl_ab": [0], "kl_ba": [0]}
    assert first.values["delta_logp"] == pytest.approx([math.log(0.8), math.log(1 / 7)], rel=1e-6)
    assert second.infinite["delta_logp"] == [0]
    assert second.tokens == ["d"]
    assert answer.summary is not None
    assert answer.summary.positions == 3
    assert answer.summary.measures["js"].count == 3
    assert answer.summary.measures["kl_ab"].infinite == 2
    assert answer.summary.perplexity.a is None
    assert first.summary is not None
    assert first.summary.perplexity.a == pytest.approx((0.5 * 0.7) ** -0.5)
    assert answer.provenance.backend == "table"


def test_divergence_in_bits_and_with_the_models_exchanged(http: httpx.Client) -> None:
    body: dict[str, Any] = {"items": ITEMS[:1], "measures": ["kl_ab", "delta_logp", "tv", "entropy_a"]}
    bits = post(http, "/divergence", **body, units="bits", summary=False)
    assert bits["items"][0]["values"]["kl_ab"][1] == pytest.approx(KL_AB / math.log(2), rel=1e-6)
    assert bits["items"][0]["values"]["tv"][1] == pytest.approx(0.6, rel=1e-6)
    assert bits["summary"] is None
    turned = post(http, "/divergence", a="tuned", b="base", **body)
    assert (turned["a"], turned["b"]) == ("tuned", "base")
    values = turned["items"][0]["values"]
    assert values["kl_ab"][1] == pytest.approx(KL_BA, rel=1e-6)
    assert values["delta_logp"][1] == pytest.approx(math.log(7), rel=1e-6)
    assert values["entropy_a"][1] == pytest.approx(float(-np.sum(Q * np.log(Q))), rel=1e-6)
    assert turned["items"][0]["summary"]["perplexity"]["a"] == pytest.approx((0.4 * 0.1) ** -0.5)


def test_divergence_with_each_models_own_template(http: httpx.Client) -> None:
    answer = post(http, "/divergence", items=ITEMS[1:], prompt_mode="per_model")
    assert answer["provenance"]["prompt_mode"] == "per_model"
    response = http.post("/divergence", json={"items": ITEMS, "prompt_mode": "per_model"})
    assert response.status_code == 422


def test_switching_follows_the_policy_and_replays_from_its_receipt(http: httpx.Client) -> None:
    policy = {"kind": "divergence", "measure": "tv", "on": 0.5}
    answer = post(http, "/switch-generate", prompt="b", policy=policy, sampling={"max_tokens": 20}, measures=["js"])
    result = SwitchResponse.model_validate(answer)
    # The rows differ by more than 0.5 exactly after an "a".
    expected = ["b" if before == 0 else "a" for before in [1, *result.token_ids[:-1]]]
    assert result.leads == "".join(expected)
    assert [(s.position, s.to) for s in result.switches] == [
        (i, lead) for i, lead in enumerate(expected) if lead != (expected[i - 1] if i else "a")
    ]
    assert result.divergences == [pytest.approx(0.6 if lead == "b" else 0.2) for lead in expected]
    assert len(result.signals["js"]) == len(result.token_ids)
    assert result.b_fraction == pytest.approx(expected.count("b") / len(expected))
    receipt = answer["receipt"]
    replay = {"prompt_ids": receipt["prompt_ids"], "policy": receipt["policy"], "sampling": receipt["sampling"]}
    again = post(http, "/switch-generate", **replay, lookahead=0)
    assert (again["token_ids"], again["leads"]) == (answer["token_ids"], answer["leads"])


def test_the_models_may_switch_with_their_roles_exchanged(http: httpx.Client) -> None:
    turned = post(http, "/switch-generate", a="tuned", prompt="b", policy={"kind": "always_b"}, sampling=GREEDY)
    assert (turned["a"], turned["b"], turned["text"]) == ("tuned", "base", "ababab")
    assert turned["leads"] == "bbbbbb"
    receipt = turned["receipt"]
    assert (receipt["a"], receipt["b"]) == ("tuned", "base")
    fields = {name: receipt[name] for name in ("a", "b", "prompt_ids", "policy", "sampling")}
    assert post(http, "/switch-generate", **fields)["token_ids"] == turned["token_ids"]
    straight = post(http, "/switch-generate", prompt="b", policy={"kind": "always_a"}, sampling=GREEDY)
    assert straight["receipt"]["a_fingerprint"] == turned["receipt"]["b_fingerprint"]
    assert straight["text"] == turned["text"]


def test_always_b_never_switches(http: httpx.Client) -> None:
    answer = post(http, "/switch-generate", prompt="b", policy={"kind": "always_b"}, sampling=GREEDY)
    assert (answer["switches"], answer["b_fraction"]) == ([], 1.0)
    started = post(http, "/switch-generate", prompt="b", policy={"kind": "schedule", "positions": [0]}, sampling=GREEDY)
    assert [(s["position"], s["from"], s["to"]) for s in started["switches"]] == [(0, "a", "b"), (1, "b", "a")]


def counters(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_usage_and_counters_tell_what_a_generation_cost(http: httpx.Client) -> None:
    before = counters(http)
    sampling = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    made = post(http, "/switch-generate", prompt="x", policy={"kind": "always_a"}, sampling=sampling, lookahead=3)
    usage = made["usage"]
    assert (usage["a_forwards"], usage["b_forwards"], usage["drafted"], usage["accepted"]) == (6, 2, 6, 6)
    assert (usage["rounds"], usage["mean_accepted"]) == (2, 3.0)
    after = counters(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('rl_onoff_tokens_total{lead="a",pair="pair"}') == 6
    assert grown('rl_onoff_forwards_total{pair="pair",role="a"}') == 6
    assert grown('rl_onoff_forwards_total{pair="pair",role="b"}') == 2
    assert grown('rl_onoff_drafted_total{pair="pair"}') == 6
    assert grown('rl_onoff_accepted_total{pair="pair"}') == 6
    assert grown('rl_onoff_rounds_total{pair="pair"}') == 2
    plain = post(http, "/switch-generate", prompt="x", policy={"kind": "always_a"}, sampling=sampling, lookahead=0)
    assert plain["token_ids"] == made["token_ids"]
    assert plain["usage"]["mean_accepted"] is None


def test_models_that_exclude_each_others_tokens_have_no_perplexity_ratio(http: httpx.Client) -> None:
    body = {"items": [{"prompt": "b", "solution": "dcbcd"}], "measures": ["js", "kl_ab"]}
    response = http.post("/divergence", json=body)
    assert response.status_code == 200, response.text
    perplexity = response.json()["summary"]["perplexity"]
    assert (perplexity["a"], perplexity["b"], perplexity["ratio"]) == (None, None, None)


def test_generate_takes_any_metric_of_texts(http: httpx.Client) -> None:
    """The values are those of the libraries; a corpus's is its own, not the mean."""
    from rl_onoff.metrics import find

    references = ["ab", "b c"]
    answer = post(
        http,
        "/generate",
        model="base",
        prompts=["b", "b"],
        sampling={"temperature": 0, "max_tokens": 2},
        metrics=["rougeL", "bleu", "length", "exact_match:words"],
        references=references,
    )
    for result, reference in zip(answer["results"], references, strict=True):
        expected = {name: find(name).score(result["text"], reference) for name in result["metrics"]}
        assert result["metrics"] == expected
        assert len(expected) == 4
    sums = [
        find("bleu").sums(result["text"], reference)
        for result, reference in zip(answer["results"], references, strict=True)
    ]
    assert answer["metrics"]["bleu"] == find("bleu").combine([sum(column) for column in zip(*sums, strict=True)])
    assert answer["metrics"]["exact_match:words"] == 0.5


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "divergence", "on": 0.05, "min_dwell": 3},
        {"kind": "divergence", "on": 0.2, "off": 0.01, "max_b_fraction": 0.4},
        {"kind": "random", "rate": 0.4},
        {"kind": "schedule", "positions": [1, 2, 7, 9]},
    ],
)
def test_a_run_goes_on_after_given_tokens_as_if_it_had_written_them(http: httpx.Client, policy: Any) -> None:
    sampling = {"max_tokens": 24, "seed": 11, "ignore_eos": True}
    whole = post(http, "/switch-generate", prompt="b", policy=policy, sampling=sampling, measures=["entropy_a"])
    assert "".join(whole["tokens"]) == whole["text"]
    for cut in (1, 4, 8, 23):
        given = {"token_ids": whole["token_ids"][:cut], "leads": whole["leads"][:cut]}
        rest = post(
            http,
            "/switch-generate",
            prompt="b",
            given=given,
            policy=policy,
            sampling={**sampling, "max_tokens": 24 - cut},
            measures=["entropy_a"],
        )
        assert rest["token_ids"] == whole["token_ids"][cut:]
        assert rest["leads"] == whole["leads"][cut:]
        assert rest["tokens"] == whole["tokens"][cut:]
        assert rest["divergences"] == pytest.approx(whole["divergences"][cut:])
        later = [{**switch, "position": switch["position"] - cut} for switch in whole["switches"]]
        assert [s["position"] for s in rest["switches"]] == [s["position"] for s in later if s["position"] >= 0]
        assert rest["receipt"]["given"] == given
