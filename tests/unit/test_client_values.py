"""What the client takes for lists and numbers, and how it names what it does not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rl_onoff import Client
from rl_onoff.errors import InvalidField
from rl_onoff.findings import describe
from tests.unit.service_double import Service
from tests.unit.test_client_requests import PROVENANCE, ok, sent


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"seed": np.int64(3)}, {"seed": 3}),
        ({"max_tokens": np.uint8(9), "top_k": np.array(4)}, {"max_tokens": 9, "top_k": 4}),
        ({"temperature": np.float32(0.5), "top_p": np.float64(0.25)}, {"temperature": 0.5, "top_p": 0.25}),
        ({"stop": ("A:", "B:")}, {"stop": ["A:", "B:"]}),
        ({"sampling": {"seed": np.int32(1), "stop": ("x",)}}, {"seed": 1, "stop": ["x"]}),
    ],
)
def test_numbers_and_lists_of_numpy_and_tuples(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert sent("switch_generate", "Q", **fields)["sampling"] == sampling


@pytest.mark.parametrize("ids", [(1, 2), np.array([1, 2]), [np.int64(1), 2], range(1, 3), np.array([1, 2], np.uint8)])
def test_ids(ids: Any) -> None:
    assert sent("generate", model="m", prompt_ids=ids)["prompt_ids"] == [1, 2]
    service = Service(ok({"id": "d", "a": "x", "b": "y", "items": [], "provenance": PROVENANCE}))
    with Client(transport=service.transport) as client:
        client.divergence(({"prompt_ids": ids, "solution_ids": ids},), measures=("js",))
    assert service.sent == {"items": [{"prompt_ids": [1, 2], "solution_ids": [1, 2]}], "measures": ["js"]}


def test_numbers_of_a_policy() -> None:
    policy = {"kind": "schedule", "positions": np.array([3, 1])}
    assert sent("switch_generate", "Q", policy=policy)["policy"]["positions"] == [1, 3]
    assert sent("switch_generate", "Q", policy={"kind": "divergence", "on": np.float32(0.5)})["policy"]["on"] == 0.5


def test_no_sampling_is_the_default() -> None:
    assert "sampling" not in sent("generate", "Q", model="m", sampling=None)
    assert sent("generate", "Q", model="m", sampling=None, seed=1)["sampling"] == {"seed": 1}


@pytest.mark.parametrize(
    ("call", "args", "fields", "where"),
    [
        ("switch_generate", ["Q"], {"sampling": "canary"}, "sampling"),
        ("switch_generate", ["Q"], {"sampling": 5, "seed": 1}, "sampling"),
        ("switch_generate", ["Q"], {"policy": 5}, "policy"),
        ("switch_generate", [5], {}, "prompt"),
        ("switch_generate", ["Q"], {"policy": {"kind": "random"}}, "policy.rate"),
        ("switch_generate", ["Q"], {"policy": {"kind": "canary"}}, "policy"),
        ("switch_generate", ["Q"], {"policy": {"kind": "divergence", "of": 1}}, "policy.of"),
        ("switch_generate", ["Q"], {"stop": 5}, "sampling.stop"),
        ("switch_generate", ["Q"], {"stop": ["x", 5]}, "sampling.stop.1"),
        ("switch_generate", ["Q"], {"lookahead": -1}, "lookahead"),
        ("switch_generate", [], {"prompt_ids": np.array([1.5])}, "prompt_ids.0"),
        ("switch_generate", [], {"prompt_ids": np.array([[1]])}, "prompt_ids.0"),
        ("divergence", [{"prompt": "Q", "solution": "A"}], {}, "items"),
        ("divergence", ["canary"], {}, "items"),
        ("divergence", [5], {}, "items"),
        ("divergence", [[{"prompt": "Q", "solution": 5}]], {}, "items.0.solution"),
    ],
)
def test_what_is_wrong_is_named_as_in_the_request(call: str, args: list[Any], fields: Any, where: str) -> None:
    service = Service()
    with Client(transport=service.transport) as client, pytest.raises(InvalidField) as caught:
        getattr(client, call)(*args, **fields)
    named = caught.value.extensions["errors"]
    assert where in [each["field"] for each in named]
    assert all(each["field"].startswith(where.split(".")[0]) for each in named)
    assert "[" not in caught.value.detail.replace("[]", "")
    assert "canary" not in str(caught.value) + repr(caught.value.extensions)
    assert not service.requests


def test_a_finding_is_described_once() -> None:
    finding = {"type": "missing", "loc": ("policy", "random", "rate"), "msg": "Field required"}
    body = {"policy": {"kind": "random"}}
    assert describe([finding, finding], body) == [{"field": "policy.rate", "message": "is required"}]
