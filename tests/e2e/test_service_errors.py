"""Every way to ask wrongly, and what is said about it: RFC 9457, with the field, without the input."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from rl_onoff.errors import OnOffError, from_problem

CANARY = "dddddd"


def check(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "request_id", "retryable"} <= problem.keys()
    assert problem["type"] == f"urn:rl-onoff:problem:{slug}"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["instance"] == response.url.path
    assert isinstance(from_problem(problem), OnOffError)
    assert CANARY not in response.text
    assert "Traceback" not in response.text
    return problem


ITEM = {"prompt": "a", "solution": "b"}
ROBOT = {"messages": [{"role": "robot", "content": "a"}], "solution": "b"}
WRONG_FIELDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {"prompt": "a", "temprature": 1}, "temprature", "no such field"),
    ("/generate", {"prompt": "a", "sampling": {"max_token": 1}}, "sampling.max_token", "no such field"),
    ("/generate", {"prompt": ""}, "prompt", "at least 1 character"),
    ("/generate", {"prompts": ["a", ""]}, "prompts.1", "at least 1 character"),
    ("/generate", {"prompts": []}, "prompts", "at least 1 item"),
    ("/generate", {}, "", "exactly one of prompt"),
    ("/generate", {"prompt": "a", "prompt_ids": [1]}, "", "not prompt and prompt_ids"),
    ("/generate", {"prompt": "a", "sampling": {"temperature": -1}}, "sampling.temperature", "greater than or equal"),
    ("/generate", {"prompt": "a", "sampling": {"max_tokens": True}}, "sampling.max_tokens", "valid integer"),
    ("/generate", {"prompt": "a", "sampling": {"max_tokens": "5"}}, "sampling.max_tokens", "valid integer"),
    ("/generate", {"prompt": "a", "sampling": {"top_p": 0}}, "sampling.top_p", "greater than"),
    ("/generate", {"prompt": "a", "sampling": {"seed": 2**63}}, "sampling.seed", "less than or equal"),
    ("/generate", {"prompt": "a", "sampling": {"stop": [""]}}, "sampling.stop.0", "at least 1 character"),
    ("/generate", {"prompt": "a", "metrics": ["exact_match"]}, "references", "exact_match needs references"),
    ("/generate", {"prompt": "a", "metrics": ["rougeL"]}, "references", "rougeL needs references"),
    ("/generate", {"prompt": "a", "metrics": ["length", "blue"]}, "metrics.1", "Did you mean 'bleu'?"),
    ("/generate", {"prompt": "a", "references": ["a", "b"]}, "references", "2 references for 1"),
    ("/generate", {"prompts": ["a", "a"], "references": ["a", "b" * 301]}, "references.1", "limit of 300"),
    ("/generate", {"prompt": "a", "sampling": {"stop": ["b", "a" * 4097]}}, "sampling.stop.1", "at most 4096"),
    ("/generate", {"prompt": "a", "sampling": {"stop": "a" * 4097}}, "sampling.stop", "at most 4096"),
    ("/generate", {"prompt": "a", "sampling": {"top_k": 2**63}}, "sampling.top_k", "less than or equal"),
    ("/generate", {"prompt": "a", "logprobs": 2**63}, "logprobs", "less than or equal"),
    ("/generate", {"prompt": "a", "logprobs": 8}, "logprobs", "limit of 7"),
    ("/generate", {"prompt_ids": [0, 7]}, "prompt_ids.1", "vocabulary of 7"),
    ("/generate", {"prompt_ids": [-1]}, "prompt_ids.0", "greater than or equal"),
    ("/generate", {"prompt": "lone \ud800"}, "prompt", "surrogate"),
    ("/generate", {"prompt": "a" * 501}, "prompt", "500"),
    ("/generate", {"prompts": ["a"] * 4}, "prompts", "limit of 3"),
    ("/generate", {"prompt": "a", "sampling": {"n": 9}}, "sampling.n", "limit of 8"),
    ("/switch-generate", {"prompt": "a", "given": {"token_ids": [1], "leads": "ab"}}, "given", "2 leads for 1 tokens"),
    ("/switch-generate", {"prompt": "a", "given": {"token_ids": [1, 9], "leads": "ab"}}, "given.token_ids.1", "of 7"),
    ("/switch-generate", {"prompt": "a", "given": {"token_ids": [5], "leads": "a"}}, "given.token_ids.0", "end-of-seq"),
    ("/distributions", {"items": [{"prompt": "a"}], "top_k": 1}, "items.0", "exactly one of solution"),
    ("/distributions", {"items": [{**ITEM, "solution": ""}], "top_k": 1}, "items.0.solution", "at least 1"),
    ("/distributions", {"items": [], "top_k": 1}, "items", "at least 1 item"),
    ("/distributions", {"items": [ITEM], "top_k": 8}, "top_k", "limit of 7"),
    ("/distributions", {"items": [ITEM] * 4, "top_k": 1}, "items", "limit of 3"),
    ("/distributions", {"items": [ITEM], "top_k": 2**63}, "top_k", "less than or equal"),
    ("/distributions", {"items": [ITEM], "top_k": 1, "temperature": 1e-40}, "temperature", "greater than or equal"),
    ("/divergence", {"items": [ITEM], "temperature": 1e-45}, "temperature", "greater than or equal"),
    ("/divergence", {"items": [ITEM], "prompt_mode": "per_model"}, "prompt_mode", "needs messages"),
    ("/distributions", {"items": [ITEM], "top_k": 1, "prompt_mode": "per_model"}, "prompt_mode", "needs messages"),
    ("/distributions", {"items": [ITEM], "top_k": 1, "kind": "logits", "merge_eos": True}, "merge_eos", "no model has"),
    ("/divergence", {"items": [ITEM], "measures": ["js"] * 65}, "measures", "at most 64"),
    ("/distributions", {"items": [ITEM], "top_k": 1, "kind": "odds"}, "kind", "should be"),
    ("/divergence", {"items": [ITEM], "measures": ["wasserstein"]}, "measures.0", "should be"),
    ("/divergence", {"items": [ROBOT]}, "items.0.messages.0.role", "should be"),
    ("/switch-generate", {"prompt": "a", "policy": {"kind": CANARY}}, "policy", "must be one of 'divergence'"),
    ("/switch-generate", {"prompt": "a", "policy": {"kind": "divergence", "on": -1}}, "policy.on", "greater"),
    ("/switch-generate", {"prompt": "a", "policy": {"kind": "divergence", "on": 0.1, "off": 0.2}}, "policy", "exceed"),
    ("/switch-generate", {"prompt": "a", "lookahead": 65}, "lookahead", "less than or equal"),
    ("/switch-generate", {"prompt": "a", "sampling": {"n": 2}}, "sampling.n", "must be 1"),
    ("/switch-generate", {"prompt": "a", "policy": {}}, "policy", "kind is required"),
    ("/switch-generate", {"prompt": "a", "a": "base", "b": "base"}, "b", "not a pair"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field", "says"), WRONG_FIELDS)
def test_wrong_fields_are_named(http: httpx.Client, path: str, body: dict[str, Any], field: str, says: str) -> None:
    if path in ("/generate", "/distributions"):
        body = {"model": "base", **body}
    content = json.dumps(body)
    response = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    slug = response.json()["type"].removeprefix("urn:rl-onoff:problem:")
    assert slug in ("invalid-field", "limit-exceeded")
    problem = check(response, 422, slug)
    found = {error["field"]: error["message"] for error in problem["errors"]}
    assert field in found
    assert says in found[field]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json(http: httpx.Client, number: str) -> None:
    content = f'{{"model": "base", "prompt": "a", "sampling": {{"temperature": {number}}}}}'
    check(post_raw(http, content.encode()), 400, "malformed-request")


def test_a_number_beyond_all_floats_is_out_of_range(http: httpx.Client) -> None:
    problem = check(
        post_raw(http, b'{"model": "base", "prompt": "a", "sampling": {"temperature": 1e999}}'), 422, "invalid-field"
    )
    assert problem["errors"][0]["field"] == "sampling.temperature"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model": "base",}',
        b"[]",
        b'{"model": "base", "model": "tuned", "prompt": "a"}',
        b'{"model": "base", "prompt": "a", "sampling": {"seed": 1, "seed": 2}}',
        b"5",
        b'"base"',
        b'{"model": "\xff"}',
        b'{"prompt_ids": [' + b"9" * 5000 + b"]}",
        b"[" * 33 + b"]" * 33,
        b'{"x": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"x": ' + b"[" * 32 + b"]" * 32 + b"}",
    ],
)
def test_bodies_no_request_can_be_made_of(http: httpx.Client, content: bytes) -> None:
    check(post_raw(http, content), 400, "malformed-request")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types(http: httpx.Client, headers: dict[str, str]) -> None:
    check(http.post("/generate", content=b"{}", headers=headers), 415, "unsupported-media-type")


def post_raw(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/generate", content=content, headers={"Content-Type": "application/json"})


def test_a_body_beyond_the_limit(http: httpx.Client) -> None:
    problem = check(post_raw(http, b" " * 20001), 413, "payload-too-large")
    assert problem["limit"] == 20000

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    response = http.post("/generate", content=chunks(), headers={"Content-Type": "application/json"})
    check(response, 413, "payload-too-large")


def test_a_body_that_does_not_arrive(table_service: str) -> None:
    url = httpx.URL(table_service)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as slow:
        slow.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A:"])
def test_a_head_that_does_not_arrive(table_service: str, before: bytes, sent: bytes) -> None:
    url = httpx.URL(table_service)
    with socket.create_connection((url.host, url.port or 80), timeout=7) as slow:
        slow.sendall(before)
        answer = b""
        while before and not answer.endswith(b"}"):
            answer += slow.recv(1000)
        slow.sendall(sent)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1000) == b""
        assert time.monotonic() - begun > 0.9


def test_headers_beyond_the_limit(http: httpx.Client) -> None:
    check(http.get("/models", headers={"X-Long": "x" * 33000}), 431, "headers-too-large")


@pytest.mark.parametrize("name", ["nothing", "../base", "http://example.org/model", "/etc/passwd", "BASE", ""])
def test_unknown_models(http: httpx.Client, name: str) -> None:
    problem = check(http.post("/generate", json={"model": name, "prompt": "a"}), 404, "unknown-model")
    assert problem["models"] == ["base", "tuned"]
    check(http.post("/divergence", json={"a": name, "items": [ITEM]}), 404, "unknown-model")


def test_the_context_is_checked_before_any_work(http: httpx.Client) -> None:
    sampling = {"max_tokens": 60}
    response = http.post("/switch-generate", json={"prompt": "a" * 41, "sampling": sampling})
    problem = check(response, 422, "context-exceeded")
    assert (problem["limit"], problem["actual"]) == (100, 101)
    item = {"prompt": "a" * 60, "solution": "b" * 41}
    problem = check(http.post("/divergence", json={"items": [ITEM, item]}), 422, "context-exceeded")
    assert problem["errors"][0]["field"] == "items.1"
    problem = check(http.post("/generate", json={"model": "base", "prompt": "a" * 100}), 422, "context-exceeded")


def test_whole_rows_are_refused_as_json_and_beyond_the_budget(http: httpx.Client) -> None:
    items = [{"prompt": "a", "solution": "b" * 50}] * 2
    body = {"model": "base", "items": [*items, {"prompt": "a", "solution": "b"}]}
    problem = check(http.post("/distributions", json=body), 406, "not-acceptable")
    assert "application/vnd.safetensors" in problem["detail"]
    headers = {"Accept": "application/vnd.safetensors"}
    problem = check(http.post("/distributions", json=body, headers=headers), 422, "limit-exceeded")
    assert (problem["positions"], problem["positions_that_fit"]) == (101, 100)  # of 7 x 4 bytes, in 2,800
    fitting = {"model": "base", "items": items}
    assert http.post("/distributions", json=fitting, headers=headers).status_code == 200


def test_routes_and_methods_that_are_not_there(http: httpx.Client) -> None:
    check(http.get("/nowhere"), 404, "not-found")
    check(http.get("/generate/"), 404, "not-found")
    response = http.get("/generate")
    check(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_a_nul_character_is_text_like_any_other(http: httpx.Client) -> None:
    response = http.post("/generate", json={"model": "base", "prompt": "\0", "sampling": {"max_tokens": 1}})
    assert response.status_code == 200


def test_head_is_get_without_a_body(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/models", "/"):
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    response = http.head("/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_wrong_part_of_the_address_is_named(http: httpx.Client) -> None:
    problem = check(http.get("/examples", params={"limit": 0}), 422, "invalid-field")
    assert problem["errors"][0]["field"] == "limit"
    assert problem["detail"].startswith("limit: ")


def test_a_field_that_may_be_several_things_says_all_of_them(http: httpx.Client) -> None:
    body = {"prompt": "a", "policy": {"kind": "always_a"}, "lookahead": 65}
    problem = check(http.post("/switch-generate", json=body), 422, "invalid-field")
    assert problem["detail"].startswith("lookahead: ")
    assert "'auto'" in problem["detail"]
    assert "64" in problem["detail"]
