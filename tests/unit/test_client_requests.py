"""What the client sends, and how it reads answers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from rl_onoff import AsyncClient, Client
from rl_onoff.errors import ConfigurationError, InvalidField, ServiceError
from rl_onoff.policy import DivergencePolicy, RandomPolicy
from rl_onoff.schemas import Item, Message, Sampling
from rl_onoff.tensors import read_distributions, read_metadata
from tests.unit.service_double import GENERATED, SWITCHED, Service

ITEM = {"prompt": "Q", "solution": "A"}


def ok(body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)


def sent(call: str, *args: Any, answer: Any = None, **fields: Any) -> dict[str, Any]:
    service = Service(ok(answer or (SWITCHED if call == "switch_generate" else GENERATED)))
    with Client(transport=service.transport) as client:
        getattr(client, call)(*args, **fields)
    return service.sent


def test_only_what_was_given_is_sent() -> None:
    assert sent("generate", "Q", model="base") == {"model": "base", "prompt": "Q"}
    assert sent("switch_generate", "Q") == {"prompt": "Q"}


def test_sampling_may_be_given_directly_or_as_a_model_or_both() -> None:
    expected = {"prompt": "Q", "sampling": {"max_tokens": 5, "seed": 1, "temperature": 0.5}}
    for sampling in (Sampling(max_tokens=9, temperature=0.5), {"max_tokens": 9, "temperature": 0.5}):
        assert sent("switch_generate", "Q", sampling=sampling, max_tokens=5, seed=1) == expected
    assert sent("switch_generate", "Q", sampling=Sampling(top_k=3))["sampling"] == {"top_k": 3}


@pytest.mark.parametrize(
    ("policy", "body"),
    [
        (DivergencePolicy(), {"kind": "divergence"}),
        (DivergencePolicy(on=0.2, min_dwell=3), {"kind": "divergence", "on": 0.2, "min_dwell": 3}),
        (RandomPolicy(kind="random", rate=0.5), {"kind": "random", "rate": 0.5}),
        ({"kind": "always_b"}, {"kind": "always_b"}),
    ],
)
def test_policies_name_their_kind(policy: Any, body: dict[str, Any]) -> None:
    assert sent("switch_generate", "Q", policy=policy)["policy"] == body


def test_messages_and_items_may_be_models_or_dictionaries() -> None:
    messages = [Message(role="user", content="hi"), {"role": "user", "content": "hi"}]
    assert sent("switch_generate", messages=messages)["messages"] == [{"role": "user", "content": "hi"}] * 2
    service = Service(ok({"id": "d", "a": "x", "b": "y", "items": [], "provenance": PROVENANCE}))
    with Client(transport=service.transport) as client:
        client.divergence([Item(prompt="Q", solution="A"), ITEM], measures=["js"], units="bits")
    assert service.sent == {"items": [ITEM, ITEM], "measures": ["js"], "units": "bits"}


PROVENANCE = {
    "version": "0",
    "backend": "hf",
    "a_fingerprint": "1",
    "b_fingerprint": "2",
    "vocab_size": 9,
    "dtypes": ["float32"],
    "units": "bits",
    "temperature": 1.0,
    "prompt_mode": "shared",
}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": "m"}, ""),
        ({"model": "m", "prompt_ids": [1], "prompts": ["x"]}, ""),
        ({"model": "m", "prompts": [""]}, "prompts.0"),
        ({"model": "m", "prompts": ["x"], "temperature": -1.0}, "sampling.temperature"),
        ({"model": "m", "prompts": ["x"], "temprature": 1.0}, "temprature"),
        ({"model": "m", "prompt_ids": ["5"]}, "prompt_ids.0"),
        ({"model": "m", "prompts": ["\ud800"]}, "prompts.0"),
    ],
)
def test_a_wrong_field_fails_before_anything_is_sent(fields: dict[str, Any], where: str) -> None:
    service = Service(ok(GENERATED))
    with Client(transport=service.transport) as client, pytest.raises(InvalidField) as caught:
        client.generate(**fields)
    assert caught.value.extensions["errors"][0]["field"] == where
    assert not service.requests


def test_a_refusal_does_not_repeat_the_prompt() -> None:
    with Client(transport=Service().transport) as client, pytest.raises(InvalidField) as caught:
        client.generate("canary", model="m", max_tokens="canary")  # type: ignore[arg-type]
    assert "canary" not in str(caught.value) + repr(caught.value.extensions)


def test_headers() -> None:
    service = Service(ok(GENERATED))
    with Client("http://service:1/base", api_key="k1", transport=service.transport) as client:
        client.generate("Q", model="m")
    (request,) = service.requests
    assert str(request.url) == "http://service:1/base/generate"
    assert request.headers["Authorization"] == "Bearer k1"
    assert request.headers["Accept"] == request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("rl-onoff/")


@pytest.mark.parametrize("key", ["secret\n", "sécret", "se\x00cret"])
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(cls: type[Client], key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        cls(api_key=key)
    assert "cret" not in caught.value.detail


@pytest.mark.parametrize("url", ["http://h:port", "http://h\n"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"URL|http"):
        Client(url)


def test_without_a_key_none_is_sent_and_streams_wait_less_between_bytes() -> None:
    service = Service(httpx.ConnectError("no"))
    with Client(transport=service.transport, max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(Exception, match="no"):
                client.generate("Q", model="m", stream=stream)  # type: ignore[call-overload]
    plain, stream = service.requests
    assert "Authorization" not in plain.headers
    assert plain.extensions["timeout"] == {"connect": 5.0, "read": 600.0, "write": 60.0, "pool": None}
    assert stream.extensions["timeout"]["read"] == 60.0
    assert stream.headers["Accept"] == "text/event-stream"


def test_answers_keep_what_a_newer_service_adds() -> None:
    service = Service(ok(SWITCHED | {"invented": 1}))
    with Client(transport=service.transport) as client:
        result = client.switch_generate("Q")
    assert (result.leads, result.divergences, result.switches[0].from_) == ("ab", [0.01, None], "a")
    assert result.model_extra == {"invented": 1}


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>hello"), ok({"id": "x"})])
def test_an_answer_that_is_none(answer: httpx.Response) -> None:
    with Client(transport=Service(answer).transport) as client, pytest.raises(ServiceError, match="GenerateResponse"):
        client.generate("Q", model="m")


def test_the_small_questions() -> None:
    bodies = {
        "/health": {"status": "ok"},
        "/ready": {"ready": True, "pairs": {"demo": "ready"}},
        "/version": {"version": "1", "python": "3"},
        "/models": {"models": [], "pairs": [{"name": "demo", "a": "base", "b": "rl"}]},
    }
    service = Service(lambda request: ok(bodies[request.url.path]))
    with Client(transport=service.transport) as client:
        assert client.health().status == "ok"
        assert client.ready().pairs == {"demo": "ready"}
        assert client.version().version == "1"
        assert client.models().pairs[0].b == "rl"
    assert {request.method for request in service.requests} == {"GET"}


async def test_the_async_client_says_the_same() -> None:
    bodies = {
        "/health": {"status": "ok"},
        "/ready": {"ready": True, "pairs": {}},
        "/version": {"version": "1", "python": "3"},
        "/models": {"models": [], "pairs": []},
        "/generate": GENERATED,
        "/switch-generate": SWITCHED,
        "/divergence": {"id": "d", "a": "x", "b": "y", "items": [], "provenance": PROVENANCE},
    }
    service = Service(lambda request: ok(bodies[request.url.path]))
    async with AsyncClient(transport=service.transport, api_key="k") as client:
        assert (await client.health()).status == "ok"
        assert (await client.ready()).ready
        assert (await client.version()).python == "3"
        assert (await client.models()).models == []
        assert (await client.generate("Q", model="m", seed=1)).results[0].text == "42"
        assert (await client.switch_generate("Q", policy=DivergencePolicy(on=0.2))).seed == 3
        assert service.sent == {"prompt": "Q", "policy": {"kind": "divergence", "on": 0.2}}
        assert (await client.divergence([ITEM])).b == "y"
    assert {request.headers["Authorization"] for request in service.requests} == {"Bearer k"}


def tensors(values: np.ndarray[Any, Any], **more: np.ndarray[Any, Any]) -> bytes:
    metadata = {"model": "base", "kind": '"logprobs"', "vocab_size": "4", "cache": '{"hit_rows": 0}'}
    return save({"0.token_ids": np.array([2, 0]), "0.values": values} | more, metadata=metadata)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_full_distributions(dtype: str) -> None:
    values = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1e-9, 1e-9]])).astype(dtype)
    body = tensors(values)
    service = Service(httpx.Response(200, content=body))
    with Client(transport=service.transport) as client:
        (item,) = client.distributions([ITEM], model="base", full=True, dtype="float16")
    assert service.requests[0].headers["Accept"] == "application/vnd.safetensors"
    assert service.sent == {"items": [ITEM], "model": "base", "dtype": "float16"}
    assert (item.values == values).all()
    assert item.values.dtype == dtype
    assert item.token_ids.tolist() == [2, 0]
    assert item.ids is None
    assert item.token_logprobs is not None
    assert item.token_logprobs.tolist() == [values[0, 2], values[1, 0]]
    assert item.metadata == {"model": "base", "kind": "logprobs", "vocab_size": 4, "cache": {"hit_rows": 0}}
    async with AsyncClient(transport=Service(httpx.Response(200, content=body)).transport) as client:
        (again,) = await client.distributions([ITEM], model="base", full=True)
    assert (again.values == values).all()


def test_top_k_as_arrays() -> None:
    values, ids = np.zeros((2, 1), np.float32), np.array([[3], [0]], np.int32)
    (item,) = read_distributions(tensors(values, **{"0.ids": ids}))
    assert item.ids is not None
    assert item.ids.tolist() == [[3], [0]]
    assert item.token_logprobs is None
    assert item.tail is None
    more = {"0.token_logprobs": np.array([-1.0, -2.0]), "0.tail": np.array([0.25, 0.5])}
    (item,) = read_distributions(tensors(values, **{"0.ids": ids}, **more))
    assert item.token_logprobs is not None
    assert item.tail is not None
    assert item.tail.tolist() == [0.25, 0.5]
    assert item.token_logprobs.tolist() == [-1.0, -2.0]


async def test_an_answer_that_is_not_binary_is_not_saved(tmp_path: Path) -> None:
    service = Service(ok({}))
    fields: Any = {"model": "base", "top_k": 2, "save_to": tmp_path / "rows"}
    with Client(transport=service.transport) as client, pytest.raises(InvalidField, match="save_to needs full=True"):
        client.distributions([ITEM], **fields)
    async with AsyncClient(transport=service.transport) as other:
        with pytest.raises(InvalidField, match="save_to needs full=True"):
            await other.distributions([ITEM], **fields)
    assert not service.requests


def test_bfloat16_becomes_float32() -> None:
    import torch
    from safetensors.torch import save as save_torch

    values = torch.tensor([[0.1, -3.75, float("-inf"), -0.0], [1e30, 1e-30, 2.0, -1.0]]).bfloat16()
    body = save_torch({"0.values": values, "0.token_ids": torch.tensor([0, 1])}, metadata={"kind": "logits"})
    (item,) = read_distributions(body)
    assert item.values.dtype == np.float32
    assert item.values.tolist() == values.float().tolist()
    assert item.token_logprobs is None


def test_many_items_stay_in_order() -> None:
    body = save({f"{i}.{name}": np.full((1, 1), i) for i in range(12) for name in ("token_ids", "values")})
    assert [int(item.values[0, 0]) for item in read_distributions(body)] == list(range(12))
    assert read_metadata(body) == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"\xff" * 40, save({"0.token_ids": np.zeros(2)}), save({"0.token_ids": np.zeros(2, np.bool_)})],
)
def test_broken_tensors(body: bytes) -> None:
    with pytest.raises(ServiceError, match="the answer"):
        read_distributions(body)


def test_the_contract_alone_loads_no_http_client() -> None:
    code = (
        "import sys, rl_onoff.policy, rl_onoff.divergence, rl_onoff.errors, rl_onoff.schemas\n"
        "assert not {'httpx', 'typer', 'rich', 'torch'} & set(sys.modules)\n"
        "from rl_onoff import Client, AsyncClient, FullDistributions, OnOffError\n"
        "heavy = {'torch', 'fastapi', 'redis', 'aiohttp', 'msgspec', 'app', 'workers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_deadline_goes_with_every_request() -> None:
    service = Service(httpx.Response(200, json=GENERATED))
    with Client(transport=service.transport, deadline=2.5) as client:
        client.generate("x", model="base")
    assert service.requests[-1].headers["X-Request-Timeout"] == "2.500"
    with Client(transport=service.transport) as client:
        client.generate("x", model="base")
    assert "X-Request-Timeout" not in service.requests[-1].headers
    for deadline in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="deadline"):
            Client(transport=service.transport, deadline=deadline)
