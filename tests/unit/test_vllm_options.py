"""What the vLLM backend makes of an operator's options, and of an environment without vLLM."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rl_onoff.errors import ConfigurationError, MissingDependency
from workers.backends import load_pair
from workers.backends.vllm.options import options_of
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


def test_without_vllm_the_remedy_is_named() -> None:
    before = dict(os.environ)
    with pytest.raises(MissingDependency, match="pip install"):
        load_pair(WorkerSpec("p", "vllm", "", ModelSpec("a", "x"), ModelSpec("b", "y")))
    assert dict(os.environ) == before
