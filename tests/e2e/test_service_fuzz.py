"""Valid requests with one thing changed: whatever it is, the answer is a result or a problem, never a failure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "b"}], "solution_ids": [1, 2]}
ITEM = {"prompt": "ab", "solution": "ba"}
SAMPLING = {
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 1,
    "stop": ["ca"],
    "n": 1,
}
POLICY = {"kind": "divergence", "measure": "js", "on": 0.2, "off": 0.1, "min_dwell": 2, "start": "a"}
VALID: dict[str, dict[str, Any]] = {
    "/generate": {
        "model": "base",
        "prompt": "ab",
        "sampling": SAMPLING,
        "logprobs": 2,
        "metrics": ["exact_match", "perplexity"],
        "references": ["x"],
    },
    "/distributions": {"model": "tuned", "items": [ITEM], "kind": "probs", "top_k": 3, "temperature": 2.0},
    "/divergence": {
        "a": "base",
        "b": "tuned",
        "items": [ITEM, CHAT],
        "measures": ["js", "kl_ab"],
        "units": "bits",
        "temperature": 0.5,
    },
    "/switch-generate": {
        "prompt_ids": [0, 1],
        "policy": POLICY,
        "sampling": SAMPLING,
        "lookahead": 2,
        "measures": ["tv", "delta_logp"],
    },
    "/v1/completions": {
        "model": "switch:js>0.2;off=0.1",
        "prompt": ["ab", "b"],
        "max_tokens": 3,
        "temperature": 0.5,
        "echo": True,
        "logprobs": 2,
        "seed": 1,
        "stop": ["ca"],
        "n": 1,
        "logit_bias": {},
        "lookahead": 2,
    },
    "/v1/chat/completions": {
        "model": "pair",
        "messages": [{"role": "user", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 1,
        "policy": POLICY,
        "n": 2,
        "tools": [],
    },
    "/tokenize": {"model": "base", "prompt": "ab", "add_special_tokens": False},
    "/detokenize": {"model": "pair", "tokens": [0, 1]},
}
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    1e-300,
    1e300,
    2**31,
    2**63,
    10**40,
    -0.0,
    1.5,
    "",
    "a",
    "\0",
    "é\u2028",
    "\ud800",
    "a" * 600,
    [],
    [None],
    [[]],
    {},
    {"a": 1},
    [0],
    [6],
    [7],
    ["a"],
    [-1],
    "js",
    "base",
    "always_b",
    {"kind": "always_a"},
    {"kind": "random", "rate": 1},
    {"kind": "schedule", "positions": [0, 2]},
    ["delta_logp", "delta_logp"],
    ["kl_ab"],
    ["top1_agree", "entropy_b"],
    [ITEM] * 3,
]


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in entries:
        yield (*prefix, key)
        yield from paths(child, (*prefix, key))


def changed(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    body = copy.deepcopy(body)
    *steps, last = rng.choice(list(paths(body)))
    here: Any = body
    for step in steps:
        here = here[step]
    match rng.randrange(6):
        case 0:
            del here[last]
        case 1 if isinstance(here, dict):
            here[rng.choice(["new", "\ud800", "stream", "prompt", "prompts", "messages"])] = rng.choice(ODD)
        case _:
            here[last] = rng.choice(ODD)
    return body


@pytest.mark.parametrize("path", VALID)
def test_no_request_makes_it_fail(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=VALID[path]).status_code == 200
    rng = random.Random(path)
    statuses = set()
    for _ in range(150):
        body = changed(VALID[path], rng)
        response = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        statuses.add(response.status_code)
        assert response.status_code < 500, (body, response.text)
        openai = path.startswith("/v1")
        if response.status_code != 200 and openai:
            assert response.headers["content-type"] == "application/json"
            assert response.json()["error"]["message"]
        elif response.status_code != 200:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["detail"]
        elif body.get("stream"):
            assert ("data: [DONE]" if openai else "event: done") in response.text
        elif not path.endswith("tokenize"):
            assert response.json()["id"]
    assert {200, 400 if openai else 422} <= statuses
