"""openai-python against the service: on one model, and on a pair as one model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from app.errors import ProblemResponse
from rl_onoff import Client
from rl_onoff.errors import Overloaded
from tests.e2e.running_service import RunningService, running, table_pair

PROMPT = "Q: 49-8-6+7="
SWITCHED = "switch:js>0.1"
POLICY = {"kind": "divergence", "measure": "js", "on": 0.1}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("demo"), {}) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def own(thing: Any, name: str) -> Any:
    """A member that OpenAI's answers lack."""
    return thing.model_extra[name]


def test_models_and_pairs_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "rl", "demo"]
    assert own(client.models.retrieve("rl"), "side") == "b"
    assert client.models.retrieve(SWITCHED).id == SWITCHED


def test_a_model_is_also_called_by_its_pair(client: OpenAI) -> None:
    for alias, name in (("A-demo", "base"), ("B-demo", "rl")):
        texts = [
            client.completions.create(model=model, prompt=PROMPT, seed=2, max_tokens=20).choices[0].text
            for model in (alias, name)
        ]
        assert texts[0] == texts[1]
    for nothing in ("C-demo", "A-", "A-base", "a-demo"):
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=nothing, prompt=PROMPT)


def test_prompts_are_texts_or_ids_or_lists_of_either(client: OpenAI, service: RunningService) -> None:
    other = "Q: 3+4="
    with Client(service.url) as native:
        ids = [
            native.switch_generate(text, policy=POLICY, seed=1, max_tokens=1).receipt.prompt_ids
            for text in (PROMPT, other)
        ]
    made: dict[str, list[str]] = {}
    forms: dict[str, Any] = {"text": PROMPT, "ids": ids[0], "texts": [PROMPT, other], "lists of ids": ids}
    for form, prompt in forms.items():
        answer = client.completions.create(model="rl", prompt=prompt, seed=6, max_tokens=30)
        made[form] = [choice.text for choice in answer.choices]
    assert made["text"] == made["ids"] == made["texts"][:1]
    assert made["texts"] == made["lists of ids"]
    assert len(made["texts"]) == 2


def test_a_text_ends_before_its_stop(client: OpenAI) -> None:
    whole = client.completions.create(model=SWITCHED, prompt=PROMPT, seed=3, max_tokens=60).choices[0].text
    cut = client.completions.create(model=SWITCHED, prompt=PROMPT, seed=3, max_tokens=60, stop=["\n2", "zzz"])
    assert cut.choices[0].text == whole[: whole.index("\n2")]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", ["base", "rl"])
def test_a_completion_is_what_the_native_route_writes(client: OpenAI, service: RunningService, model: str) -> None:
    made = client.completions.create(model=model, prompt=[PROMPT, "Q: 3+4="], n=2, seed=5, max_tokens=60)
    with Client(service.url) as native:
        wanted = native.generate(prompts=[PROMPT, "Q: 3+4="], model=model, n=2, seed=5, max_tokens=60).results
    assert [choice.text for choice in made.choices] == [result.text for result in wanted]
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert [choice.finish_reason for choice in made.choices] == [result.finish_reason for result in wanted]
    assert made.usage is not None
    assert made.usage.completion_tokens == sum(len(result.token_ids) for result in wanted)
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_a_pair_writes_what_the_native_route_writes(client: OpenAI, service: RunningService) -> None:
    made = client.completions.create(model=SWITCHED, prompt=PROMPT, seed=3, max_tokens=60).choices[0]
    with Client(service.url) as native:
        wanted = native.switch_generate(PROMPT, policy=POLICY, seed=own(made, "seed"), max_tokens=60)
    assert made.text == wanted.text
    assert own(made, "leads") == wanted.leads
    assert own(made, "divergences") == pytest.approx(wanted.divergences, rel=1e-4, abs=1e-6)
    summary = own(made, "switch")
    assert summary["b_fraction"] == wanted.b_fraction
    assert [switch["position"] for switch in summary["switches"]] == [switch.position for switch in wanted.switches]
    by_field = client.completions.create(
        model="demo", prompt=PROMPT, seed=3, max_tokens=60, extra_body={"policy": POLICY, "lookahead": 0}
    )
    assert by_field.choices[0].text == made.text


def test_a_chat_is_the_prompt_its_template_makes(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "49-8-6+7"}]
    chat = client.chat.completions.create(
        model=SWITCHED, messages=messages, seed=3, max_tokens=60, logprobs=True, top_logprobs=2
    )
    plain = client.completions.create(model=SWITCHED, prompt=PROMPT, seed=3, max_tokens=60, logprobs=2)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.choices[0].logprobs is not None
    assert plain.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    # In their last bits they are of the shapes of the passes, which lookahead chooses by what it has seen.
    assert [entry.logprob for entry in content] == pytest.approx(plain.choices[0].logprobs.token_logprobs, abs=1e-4)
    assert all(len(entry.top_logprobs) == 2 for entry in content)


@pytest.mark.parametrize("model", ["rl", SWITCHED])
def test_a_streamed_chat_adds_up_to_the_whole_one(client: OpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": "49-8-6+7"}]
    common: dict[str, Any] = {"model": model, "messages": messages, "seed": 4, "max_tokens": 60}
    whole = client.chat.completions.create(**common)
    chunks = list(client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert last.choices == []
    # What drafts cost depends on how far they went, and that on the machine.
    assert last.usage is not None
    assert whole.usage is not None
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(last.usage, count) == getattr(whole.usage, count)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    tokens = [part.choices[0] for part in parts if "token_ids" in (part.choices[0].model_extra or {})]
    if model == SWITCHED:
        assert "".join(own(token, "lead") for token in tokens) == own(whole.choices[0], "leads")
        # Drafts of another length are judged in another shape of pass, which rounds otherwise.
        divergences = pytest.approx(own(whole.choices[0], "divergences"), rel=1e-3, abs=1e-7)
        assert [own(token, "divergence") for token in tokens] == divergences
        summary, wanted = own(parts[-1].choices[0], "switch"), own(whole.choices[0], "switch")
        for switch, want in zip(summary["switches"], wanted["switches"], strict=True):
            assert switch == {**want, "value": pytest.approx(want["value"], rel=1e-3, abs=1e-7)}
        assert {**summary, "switches": []} == {**wanted, "switches": []}


def test_an_echoed_prompt_is_scored_and_one_token_is_written(client: OpenAI, service: RunningService) -> None:
    """As lm-evaluation-harness asks for log-likelihoods."""
    solution = "\n1 so guess 41"
    with Client(service.url) as native:
        (item,) = native.distributions([{"prompt": PROMPT, "solution": solution}], model="rl", top_k=1).items
        (walked,) = native.divergence([{"prompt": PROMPT, "solution": solution}], measures=["js"]).items
    ids = client.completions.create(model="rl", prompt=PROMPT + solution, max_tokens=1, echo=True, logprobs=1, seed=1)
    logprobs = ids.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    count = len(item.token_ids)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[-count - 1 : -1] == pytest.approx(item.token_logprobs, abs=1e-5)
    assert len(own(ids.choices[0], "token_ids")) == 1
    pair = client.completions.create(model=SWITCHED, prompt=PROMPT + solution, max_tokens=0, echo=True, logprobs=1)
    walk = own(pair.choices[0], "prompt_switch")
    assert walk["divergences"][-count:] == pytest.approx(walked.values["js"], abs=1e-5)
    assert walk["leads"][-count:] == "".join("b" if value > 0.1 else "a" for value in walked.values["js"] if value)
    assert walk["b_positions"] == walk["leads"].count("b") > 0


def test_the_async_client_and_many_at_once(service: RunningService) -> None:
    async def texts() -> list[str]:
        async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
            made = await asyncio.gather(
                *(client.completions.create(model=SWITCHED, prompt=PROMPT, seed=s % 4, max_tokens=40) for s in range(8))
            )
        return [each.choices[0].text for each in made]

    got = asyncio.run(texts())
    assert got[:4] == got[4:]
    assert len(set(got)) > 1


def test_what_cannot_be_honoured_is_refused_by_name(client: OpenAI) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": 100_000}, "prompt"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
    ]
    for fields, name in asked:
        with pytest.raises(openai.BadRequestError) as raised:
            client.completions.create(model="rl", prompt=PROMPT, **fields)
        assert raised.value.param == name
        assert name in raised.value.message


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    for name in ("gpt-5", "switch:nonsense", "switch:js>0.1;pair=nowhere"):
        with pytest.raises(openai.NotFoundError) as raised:
            client.completions.create(model=name, prompt=PROMPT)
        assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="switch:js>-1", prompt=PROMPT)


def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    document = {"pairs": [table_pair(tmp_path)], "api_keys": ["a-key-of-the-lab-itself"]}
    with running(tmp_path, document) as service:
        wrong = OpenAI(base_url=f"{service.url}/v1", api_key="a-key-of-nobody-at-all", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as raised:
            wrong.models.list()
        assert raised.value.code == "invalid_api_key"
        right = OpenAI(base_url=f"{service.url}/v1", api_key="a-key-of-the-lab-itself", max_retries=0)
        assert right.completions.create(model="switch:js>0.1", prompt="b", max_tokens=3, seed=1).choices[0].text
        wrong.close()
        right.close()


def test_a_worker_that_is_not_there_is_a_server_error(tmp_path: Path) -> None:
    with (
        running(tmp_path, {"pairs": [table_pair(tmp_path)], "resume_seconds": 0}) as service,
        OpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client,
    ):
        os.kill(service.workers[0], signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model="base", prompt="b", max_tokens=1)
        assert raised.value.status_code == 503
        assert float(raised.value.response.headers["retry-after"]) >= 1


def test_a_full_queue_is_a_rate_limit_that_the_client_sits_out() -> None:
    """Nothing raises it yet: a service that does, in the shape ours gives it."""
    full = ProblemResponse(Overloaded("the queue is full", retry_after=0.01), {"path": "/v1/completions", "state": {}})
    asked: list[float] = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        return httpx.Response(full.status_code, headers=dict(full.headers), content=full.body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = OpenAI(base_url="http://service/v1", api_key="x", max_retries=1, http_client=http)
        with pytest.raises(openai.RateLimitError) as raised:
            client.completions.create(model="base", prompt="b")
    assert raised.value.code == "rate_limit_exceeded"
    assert asked[1] - asked[0] >= 1  # Retry-After, in whole seconds


def test_a_failure_within_a_stream_is_raised(tmp_path: Path) -> None:
    pair = table_pair(tmp_path, endless=True, fail_on="c")
    with (
        running(tmp_path, {"pairs": [pair]}) as service,
        OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(
            model="switch:js>0.1", prompt="b", max_tokens=100, seed=1, stream=True, extra_body={"lookahead": 1}
        )
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
