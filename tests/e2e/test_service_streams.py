"""The grammar of event streams: tokens, switches before their token, then exactly one end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running_service import events, running, table_pair


def stream(http: httpx.Client, path: str, **body: Any) -> list[tuple[str, str | None, dict[str, Any]]]:
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events(response))


@pytest.mark.parametrize("stop", [None, "ab", ["cb", "bb"]])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_switched_stream_tells_what_the_plain_answer_holds(
    http: httpx.Client, seed: int, stop: str | list[str] | None
) -> None:
    body = {
        "prompt": "b",
        "policy": {"kind": "divergence", "measure": "tv", "on": 0.5},
        "sampling": {"max_tokens": 12, "seed": seed, "stop": stop},
    }
    found = stream(http, "/switch-generate", **body)
    *before, (name, _, done) = found
    assert name == "done"
    assert {name for name, _, _ in before} <= {"token", "switch"}
    tokens = [data for name, _, data in before if name == "token"]
    assert "".join(token["text"] for token in tokens) == done["text"]
    assert [token["id"] for token in tokens] == done["token_ids"]
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert "".join(token["lead"] for token in tokens) == done["leads"]
    assert [data for name, _, data in before if name == "switch"] == done["switches"]
    for (name, event_id, data), (following, _, token) in zip(before, found[1:], strict=True):
        if name == "switch":
            assert following == "token"
            assert event_id == f"switch-{data['position']}" == f"switch-{token['index']}"
        else:
            assert int(event_id or -1) == data["index"]
    plain = http.post("/switch-generate", json=body).json()
    volatile = {"id", "usage"}
    assert {k: v for k, v in plain.items() if k not in volatile} == {k: v for k, v in done.items() if k not in volatile}


def test_a_stream_of_several_samples_interleaves_them(http: httpx.Client) -> None:
    body = {"model": "base", "prompts": ["a", "b"], "sampling": {"max_tokens": 10, "n": 2, "seed": 5}, "logprobs": 0}
    *tokens, (name, _, done) = stream(http, "/generate", **body)
    assert name == "done"
    assert [int(event_id or -1) for _, event_id, _ in tokens] == list(range(len(tokens)))
    for result in done["results"]:
        own = [d for _, _, d in tokens if (d["prompt_index"], d["sample"]) == (result["prompt_index"], result["index"])]
        assert "".join(token["text"] for token in own) == result["text"]
        assert [token["id"] for token in own] == result["token_ids"]
        assert [token["logprob"] for token in own] == result["logprobs"]["token_logprobs"]
    assert http.post("/generate", json=body).json()["results"] == done["results"]


def test_what_can_fail_before_the_first_event_fails_with_a_status(http: httpx.Client) -> None:
    response = http.post("/switch-generate", json={"prompt": "a" * 200, "stream": True})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_a_failing_forward_pass_fails_its_request_alone(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, endless=True, fail_on="c", delay=0.01)
    with running(tmp_path, {"pairs": [pair]}) as service, httpx.Client(base_url=service.url) as http:
        # Drafts of one token: a longer first draft may meet the failing pass before any token is out.
        samplings = [{"max_tokens": 100, "seed": seed} for seed in range(3)]
        prompts = [{"prompt": "b", "sampling": sampling, "lookahead": 1} for sampling in samplings]
        for body in prompts:
            *before, (name, _, problem) = stream(http, "/switch-generate", **body)
            assert name == "error"
            assert problem["type"].endswith("internal-error")
            assert problem["tokens_emitted"] == sum(event == "token" for event, _, _ in before) > 0
            assert problem["request_id"]
        assert http.post("/switch-generate", json=prompts[0]).status_code == 500
        # The very first pass fails: still a status, no stream.
        refused = http.post("/switch-generate", json={"prompt": "c", "stream": True})
        assert (refused.status_code, refused.headers["content-type"]) == (500, "application/problem+json")
        fine = {"model": "base", "prompt": "b", "sampling": {"max_tokens": 1}}
        assert http.post("/generate", json=fine).status_code == 200


def test_an_idle_stream_is_pinged(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, endless=True, delay=0.15)
    with (
        running(tmp_path, {"pairs": [pair], "ping_seconds": 0.05}) as service,
        httpx.Client(base_url=service.url) as http,
        http.stream("POST", "/switch-generate", json={"prompt": "b", "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == ": ping"
        assert next(line for line in lines if line.startswith("event")) == "event: token"
