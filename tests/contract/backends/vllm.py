"""The suite's pairs on vLLM: heads as wide as its kernels for CPUs ask, and dtypes it has.

Also a pytest plugin (`-p tests.contract.backends.vllm`): to start and to end engines takes seconds: tests of the same
models share them, one after the other.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from workers.backends.vllm import pair as backend
from workers.backends.vllm.pair import VLLMPair
from workers.wire import WorkerSpec

NAME = "vllm"
_HEAD = {"head_dim": 32}
_HIDDEN = {"hidden_size": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _HEAD,
    "qwen2": _HIDDEN,
    "qwen3": _HEAD,
    # Tied as real ones, vLLM knows no others. Its attention on CPUs only approximates the cap: 7e-4 nats off.
    "gemma2": {**_HEAD, "tie_word_embeddings": True, "attn_logit_softcapping": None},
    "gemma3_text": _HEAD,
    "mistral": _HEAD,
    "gpt2": {"n_embd": 128},
}
#: nats a log-probability may be off from transformers in float32: kernels differ.
TOLERANCE = 1e-4
EXACT = {"float32": 1e-5}

#: Of torch 2.13, at what vLLM imports.
WARNINGS = (
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:.torch.distributed.reduce_op. is deprecated:FutureWarning",
)

_load = backend.load
_held: dict[bytes, VLLMPair] = {}


class SharedPair(VLLMPair):
    """Leaves its engines to the next test."""

    async def close(self) -> None:
        pass


def load(spec: WorkerSpec) -> VLLMPair:
    """As the backend's own, on engines that may be running already."""
    from workers.backends.vllm import single
    from workers.backends.vllm.model import VLLMModel

    key = msgspec.json.encode(msgspec.structs.replace(spec, sequences=16))
    if key not in _held:
        release()  # first: the end of one pair takes what the next holds of the process
        _held[key] = _load(msgspec.structs.replace(spec, sequences=16))
    pair = _held[key]
    if isinstance(pair, single.SinglePair):

        class SharedSinglePair(single.SinglePair):
            async def close(self) -> None:
                pass

        return SharedSinglePair(
            pair.info, pair._driver, pair.a, pair.b, sequences=spec.sequences, drafted=pair._drafted
        )
    models = [
        VLLMModel(model._engine, model.info, pair._driver, spec.sequences, model._adapter) for model in (pair.a, pair.b)
    ]
    return SharedPair(pair.info, pair._driver, *models)


def release() -> None:
    """Let the engines end."""
    while _held:
        pair = _held.popitem()[1]
        pair._driver.stop()
        pair._driver._thread.join()


def pytest_configure(config: pytest.Config) -> None:
    backend.load = load
    for warning in WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = list(ARCHITECTURES)

    def models(item: pytest.Item) -> int:
        parameters = getattr(item, "callspec", None)
        named = [names.index(value) for value in parameters.params.values() if value in names] if parameters else []
        return named[0] if named else 0

    items.sort(key=models)


def pytest_sessionfinish() -> None:
    release()
