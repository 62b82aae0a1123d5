"""The service with nothing configured: the demo pair, on the Hugging Face backend."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running_service import events, running

QUESTIONS = ["49-8-6-9+8", "85+5+5-7", "12+30-7", "9+9+9-20"]
POLICY = {"kind": "divergence", "measure": "js", "on": 0.1}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("demo")
    with running(folder, {}) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


def switch(http: httpx.Client, question: str, **more: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": question}],
        "policy": POLICY,
        "sampling": {"max_tokens": 60, "seed": 7},
    }
    response = http.post("/switch-generate", json={**body, **more})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def test_a_chat_is_rendered_by_the_models_template(http: httpx.Client) -> None:
    chat = switch(http, QUESTIONS[0])
    plain = switch(http, QUESTIONS[0], messages=None, prompt=f"Q: {QUESTIONS[0]}=")
    assert chat["receipt"]["prompt_ids"] == plain["receipt"]["prompt_ids"]
    assert chat["token_ids"] == plain["token_ids"]
    assert chat["text"].startswith("\n1 ")


def test_concurrent_generations_equal_serial_ones_and_lookahead_lock_step(http: httpx.Client) -> None:
    serial = [switch(http, question, lookahead=0) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(lambda question: switch(http, question), QUESTIONS))
    for alone, among in zip(serial, together, strict=True):
        assert among["token_ids"] == alone["token_ids"]
        assert among["leads"] == alone["leads"]


def test_the_generated_text_is_scored_as_it_was_judged(http: httpx.Client) -> None:
    made = switch(http, QUESTIONS[1])
    item = {"prompt_ids": made["receipt"]["prompt_ids"], "solution_ids": made["token_ids"]}
    scored = http.post("/divergence", json={"items": [item], "measures": ["js"]}).json()
    assert scored["items"][0]["values"]["js"] == pytest.approx(made["divergences"], abs=1e-5)
    assert "".join(scored["items"][0]["tokens"][:10]) in made["text"]


def test_a_streamed_chat_ends_with_its_text(http: httpx.Client) -> None:
    body = {"model": "rl", "messages": [{"role": "user", "content": QUESTIONS[2]}], "stream": True}
    with http.stream("POST", "/generate", json=body) as response:
        *tokens, (name, _, done) = events(response)
    assert name == "done"
    (result,) = done["results"]
    assert result["finish_reason"] == "stop"
    assert "".join(token["text"] for _, _, token in tokens) == result["text"]
    assert result["text"].splitlines()[-1].startswith("A: ")


def test_a_role_the_template_refuses(http: httpx.Client) -> None:
    body = {"model": "rl", "messages": [{"role": "system", "content": "be brief"}]}
    response = http.post("/generate", json=body)
    assert response.status_code == 422
    assert "user and assistant only" in response.json()["detail"]


def test_whole_rows_are_probabilities(http: httpx.Client, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    body = {"model": "base", "items": [{"prompt": "Q: 1+1=", "solution": "\nA: 2"}], "kind": "probs"}
    response = http.post("/distributions", json=body, headers={"Accept": "application/vnd.safetensors"})
    (tmp_path / "rows.safetensors").write_bytes(response.content)
    tensors = load_file(tmp_path / "rows.safetensors")
    assert tensors["0.values"].sum(axis=-1) == pytest.approx(1, abs=1e-5)
    assert tensors["0.values"].shape[0] == tensors["0.token_ids"].size
