"""Model names of the OpenAI routes, and the request fields that are refused rather than ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.config import Settings
from app.errors import ProblemResponse
from app.services.openai.names import parse_name
from app.services.openai.requests import ChatRequest, CompletionRequest
from app.services.openai.tokenizer import TokenizeRequest
from app.services.openai.tokens import _offsets
from rl_onoff.errors import (
    ContextExceeded,
    InternalError,
    InvalidField,
    OnOffError,
    Overloaded,
    Unauthorized,
    UnknownModel,
    WorkerUnavailable,
)
from rl_onoff.policy import (
    DeltaLogpPolicy,
    DivergencePolicy,
    EntropyPolicy,
    Policy,
    RandomPolicy,
    RankPolicy,
    TargetFloorPolicy,
    TopProbPolicy,
    TypicalPolicy,
)


@pytest.mark.parametrize(
    ("name", "policy", "pair"),
    [
        ("switch", None, None),
        ("switch;pair=math", None, "math"),
        ("switch:js>0.1", DivergencePolicy(on=0.1), None),
        ("switch:js>1e-2;pair=math", DivergencePolicy(on=0.01), "math"),
        (
            "switch:kl_ab>0.2;off=0.1;dwell=4;max_b=0.25;start=b",
            DivergencePolicy(measure="kl_ab", on=0.2, off=0.1, min_dwell=4, max_b_fraction=0.25, start="b"),
            None,
        ),
        ("switch:renyi:0.5>0.1", DivergencePolicy(measure="renyi:0.5", on=0.1), None),
        ("switch:entropy>0.45", EntropyPolicy(on=0.45), None),
        ("switch:delta_logp>-1;off=-2", DeltaLogpPolicy(on=-1, off=-2), None),
        ("switch:rank>3", RankPolicy(on=3), None),
        ("switch:top_prob<0.4;off=0.5", TopProbPolicy(on=0.4, off=0.5), None),
        ("switch:target_floor<0.01", TargetFloorPolicy(on=0.01), None),
        ("switch:typical<0.09", TypicalPolicy(on=0.09), None),
        ("switch:random=0.06", RandomPolicy(rate=0.06), None),
    ],
)
def test_a_name_holds_a_policy(name: str, policy: Policy | None, pair: str | None) -> None:
    rule = parse_name(name)
    assert (rule.policy, rule.pair) == (policy, pair)


@pytest.mark.parametrize(
    "name",
    [
        "switch:",
        "switch:js",
        "switch:js>",
        "switch:js>x",
        "switch:js>nan",
        "switch:js>inf",
        "switch:js<0.1",
        "switch:js=0.1",
        "switch:js>0.1;",
        "switch:js>0.1;of=0.05",
        "switch:js>0.1;off",
        "switch:js>0.1;pair=",
        "switch;dwell=3",
    ],
)
def test_what_is_no_rule_is_no_model(name: str) -> None:
    with pytest.raises(UnknownModel, match="SIGNAL>NUMBER"):
        parse_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "switch:jsd>0.1",
        "switch:js>-1",
        "switch:js>0.1;off=0.2",
        "switch:js>0.1;dwell=0",
        "switch:js>0.1;dwell=1.5",
        "switch:js>0.1;start=c",
        "switch:random=2",
        "switch:random=0.5;dwell=3",
    ],
)
def test_a_rule_with_wrong_values_says_which(name: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_name(name)
    assert caught.value.extensions["errors"][0]["field"] == "model"


def test_configured_policies_share_their_names_with_nothing() -> None:
    pair: dict[str, Any] = {"name": "p", "a": {"path": "x"}, "b": {"path": "y"}}
    policies = {"careful": {"kind": "entropy", "on": 0.3}}
    (read,) = Settings.model_validate({"pairs": [{**pair, "policies": policies}]}).pairs
    assert read.policies == {"careful": EntropyPolicy(on=0.3)}
    for taken in ("p", "p-a", "switch"):
        with pytest.raises(ValidationError, match=f"policies, pairs or models are called {taken}"):
            Settings.model_validate({"pairs": [{**pair, "policies": {taken: policies["careful"]}}]})


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("field", "neutral", "other"),
    [
        ("logit_bias", {}, {"5": 1}),
        ("frequency_penalty", 0.0, 0.5),
        ("presence_penalty", 0, -1),
        ("best_of", 1, 2),
        ("suffix", "", "x"),
        ("tools", [], [{"type": "function"}]),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("reasoning_effort", None, "high"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field: str, neutral: Any, other: Any) -> None:
    ChatRequest.model_validate({**CHAT, field: neutral})
    ChatRequest.model_validate({**CHAT, field: None})
    with pytest.raises(ValidationError, match="is not supported") as caught:
        ChatRequest.model_validate({**CHAT, field: other})
    assert caught.value.errors()[0]["ctx"]["field"] == field


def test_unknown_fields_are_refused_and_book_keeping_is_not() -> None:
    ChatRequest.model_validate({**CHAT, "user": "me", "metadata": {"run": "1"}, "store": True})
    with pytest.raises(ValidationError, match="Extra inputs"):
        ChatRequest.model_validate({**CHAT, "temprature": 0})


@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": True}},
        {"top_logprobs": 2},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
    ],
)
def test_chats_that_contradict_themselves_or_ask_for_more_than_text(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({**CHAT, **fields})


def test_an_answer_can_be_sent_back_whole() -> None:
    answer = {"role": "assistant", "content": "y", "refusal": None, "tool_calls": None, "annotations": []}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [*CHAT["messages"], answer, {"role": "developer", "content": parts}]
    read = [message.plain() for message in ChatRequest.model_validate({**CHAT, "messages": messages}).messages]
    assert [(message.role, message.content) for message in read][1:] == [("assistant", "y"), ("system", "ab")]


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("x", ["x"]), ([1, 2], [[1, 2]]), (["x", "y"], ["x", "y"]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_in_all_their_shapes(prompt: Any, read: Any) -> None:
    assert CompletionRequest(model="m", prompt=prompt).prompt == read


@pytest.mark.parametrize("prompt", [None, 1, [], [[]], [1, "x"], [[1], "x"], [True], [-1], [[2**40]], [1.0], {}])
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})


def test_no_tokens_only_with_echo() -> None:
    CompletionRequest(model="m", prompt="x", echo=True, max_tokens=0)
    with pytest.raises(ValidationError, match="unless echo"):
        CompletionRequest(model="m", prompt="x", max_tokens=0)


def test_messages_may_stand_where_lm_eval_puts_them() -> None:
    read = TokenizeRequest.model_validate({"prompt": CHAT["messages"], "add_special_tokens": False})
    assert read.messages is not None
    assert read.prompt is None


def test_offsets_skip_what_is_not_in_the_text() -> None:
    assert _offsets(["<s>", "ab", " c"], "ab c") == [0, 0, 2]
    assert _offsets(["a", "Ã", "©", "b"], "aéb") == [0, 1, 1, 2]
    assert _offsets(["x", "Ã", "©"] * 4 + ["y"], "xéxéxéxéy")[-1] == 8
    assert _offsets(["A", "Ã", "©", "Ã", "©", "Ã", "©", "z"], "Aéééz")[-1] == 4


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (InvalidField("bad", field="n"), 400, "invalid_request_error", "invalid_field", "n"),
        (ContextExceeded("long", field="prompt"), 400, "invalid_request_error", "context_length_exceeded", "prompt"),
        (Unauthorized("no key"), 401, "authentication_error", "invalid_api_key", None),
        (UnknownModel("none such"), 404, "invalid_request_error", "model_not_found", "model"),
        (Overloaded("full", retry_after=2), 429, "rate_limit_error", "rate_limit_exceeded", None),
        (InternalError("oh"), 500, "server_error", "internal_error", None),
        (WorkerUnavailable("soon", retry_after=3), 503, "server_error", "worker_unavailable", None),
    ],
)
def test_errors_in_openais_shape(error: OnOffError, status: int, kind: str, code: str, param: str | None) -> None:
    response = ProblemResponse(error, {"path": "/v1/completions", "state": {"request_id": "r"}})
    body = json.loads(response.body)["error"]
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert (body["type"], body["code"], body["param"]) == (kind, code, param)
    assert (body["message"], body["request_id"]) == (error.detail, "r")
    assert response.headers.get("retry-after") == (str(int(error.retry_after)) if error.retry_after else None)
    native = ProblemResponse(error, {"path": "/v1x", "state": {}})
    assert (native.status_code, native.headers["content-type"]) == (error.status, "application/problem+json")
