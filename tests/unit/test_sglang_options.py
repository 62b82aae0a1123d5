"""The command lines of SGLang's servers on GPUs, which no other test starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl_onoff.errors import ConfigurationError
from workers.backends.sglang.options import arguments, on_one_gpu, options_of
from workers.wire import ModelInfo, ModelSpec, Side, WorkerSpec

INFO = ModelInfo("m", "m", None, "f", "bfloat16", "cuda", 100, 100, 512, [1], None, 1)


def spec(a: str, b: str, **options: Any) -> WorkerSpec:
    models = ModelSpec("a", "x", device=a), ModelSpec("b", "y", device=b)
    return WorkerSpec("p", "sglang", "", *models, sequences=8, options=options)


def line(worker: WorkerSpec, side: Side) -> str:
    return " ".join(arguments(worker, side, options_of(worker), INFO, Path("/m")))


@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_two_servers_on_one_gpu_share_its_memory(devices: tuple[str, str]) -> None:
    """The second takes its part of what the first has left: 0.72 of 0.58 is 0.42 too."""
    worker = spec(*devices)
    assert on_one_gpu(worker, options_of(worker))
    assert "--mem-fraction-static 0.42" in line(worker, "a")
    assert "--mem-fraction-static 0.72" in line(worker, "b")


def test_servers_that_share_nothing_take_what_they_find() -> None:
    remote = {"url": "http://gpu-1:30000"}
    for worker in (
        spec("cuda:0", "cuda:1"),
        spec("cuda", "cpu"),
        spec("cpu", "cpu"),
        spec("cuda", "cuda", remote_a=remote),
    ):
        assert not on_one_gpu(worker, options_of(worker))
        assert "mem-fraction" not in line(worker, "b")
    assert "--base-gpu-id 1" in line(spec("cuda:0", "cuda:1"), "b")


def test_prefills_on_a_gpu_run_outside_graphs() -> None:
    assert "--disable-prefill-cuda-graph" in line(spec("cuda", "cuda"), "a")
    with pytest.raises(ConfigurationError, match="cuda_graph_backend_prefill is not for you to set"):
        options_of(spec("cuda", "cuda", server={"cuda_graph_backend_prefill": "full"}))


def test_an_operators_share_comes_last() -> None:
    worker = spec("cuda", "cuda", server={"mem_fraction_static": 0.3}, server_b={"mem-fraction-static": 0.5})
    assert "--mem-fraction-static 0.3" in line(worker, "a")
    assert "--mem-fraction-static 0.5" in line(worker, "b")
