"""What the vLLM backend makes of an operator's options, and of an environment without vLLM."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rl_onoff.errors import ConfigurationError, MissingDependency
from workers.backends import load_pair
from workers.backends.vllm.options import options_of
from workers.backends.vllm.start import _places, _seeing
from workers.wire import ModelSpec, WorkerSpec


def test_engine_arguments_pass_through() -> None:
    options = options_of("p", {"engine": {"tensor_parallel_size": 2}, "engine_b": {"quantization": "fp8"}})
    assert (options.engine, options.engine_a, options.engine_b) == (
        {"tensor_parallel_size": 2},
        {},
        {"quantization": "fp8"},
    )
    assert options.float32_head


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enigne": {}}, "unknown field `enigne`"),
        ({"engine": {"worker_extension_cls": "x", "model": "y"}}, "engine: model, worker_extension_cls cannot be set"),
        ({"engine_b": {"speculative_config": {}}}, "engine_b: speculative_config cannot be set here"),
        ({"float32_head": "yes"}, "Expected `bool`"),
    ],
)
def test_options_that_are_none_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"options of pair p: .*{message}"):
        options_of("p", values)


def spec(a: str, b: str) -> WorkerSpec:
    return WorkerSpec("p", "vllm", "", ModelSpec("a", "x", device=a), ModelSpec("b", "y", device=b))


def test_an_engine_takes_the_devices_from_its_models_on() -> None:
    options = options_of("p", {"engine_b": {"tensor_parallel_size": 2}})
    assert _places(spec("cuda:0", "cuda:1"), "a", options) == [0]
    assert _places(spec("cuda:0", "cuda:1"), "b", options) == [1, 2]
    assert _places(spec("cuda", "auto"), "b", options) is None
    with pytest.raises(ConfigurationError, match="model a: cuda:x names no device"):
        _places(spec("cuda:x", "auto"), "a", options)


def test_processes_see_some_of_the_devices_that_are_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISIBLE", raising=False)
    with _seeing("VISIBLE", [1, 2]):
        assert os.environ["VISIBLE"] == "1,2"
    with _seeing("VISIBLE", None):
        assert "VISIBLE" not in os.environ
    monkeypatch.setenv("VISIBLE", "4,GPU-7,6")
    with _seeing("VISIBLE", [1, 2]):
        assert os.environ["VISIBLE"] == "GPU-7,6"
    assert os.environ["VISIBLE"] == "4,GPU-7,6"
    with (
        pytest.raises(ConfigurationError, match="there is no device 3: VISIBLE is 4,GPU-7,6"),
        _seeing("VISIBLE", [2, 3]),
    ):
        pass


def test_without_vllm_the_remedy_is_named() -> None:
    before = dict(os.environ)
    with pytest.raises(MissingDependency, match="pip install"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", "x"), ModelSpec("b", "y")))
    assert dict(os.environ) == before
