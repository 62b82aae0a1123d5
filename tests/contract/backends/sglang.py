"""The suite's pairs on SGLang.

Also a pytest plugin (`-p tests.contract.backends.sglang`): a pair of servers takes half a minute to start on two cores.
So tests of the same models share one and run one after the other, and the last two pairs are kept.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import msgspec
import pytest

from workers.backends.sglang import pair as backend
from workers.backends.sglang.pair import Servers, SGLangPair
from workers.wire import PairInfo, WorkerSpec

NAME = "sglang"
#: Those its attention for CPUs runs exactly: it knows no sliding windows and no capped logits.
ARCHITECTURES: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "qwen3": {}}
TOLERANCE = 1e-5
EXACT = {"float32": 1e-5}

_KEPT = 2
_started: OrderedDict[bytes, tuple[PairInfo, Servers]] = OrderedDict()


class SharedPair(SGLangPair):
    """Leaves its servers to the next test."""

    async def close(self) -> None:
        await self.disconnect()


#: Prompts beyond so many tokens are computed in parts, and the rows of a part in parts of `_LOGPROBS`.
PREFILL, _LOGPROBS = 64, 24


def load(spec: WorkerSpec) -> SharedPair:
    """As `backend.load`, on servers that may be running already."""
    a, b = (msgspec.structs.replace(model, dtype="float32") for model in (spec.a, spec.b))
    server = {"chunked_prefill_size": PREFILL, "log_level": "error"}
    common = msgspec.structs.replace(spec, a=a, b=b, sequences=16, options={"server": server})
    key = msgspec.json.encode(common)
    if key not in _started or not all(server.answers() for server in _started[key][1]):
        _started.pop(key, None)
        while len(_started) >= _KEPT:
            _stop(_started.popitem(last=False)[1][1])
        _started[key] = backend.start(common)
    _started.move_to_end(key)
    info, servers = _started[key]
    return SharedPair(info, servers, spec.sequences)


def _stop(servers: Servers) -> None:
    for server in servers:
        server.stop()


def pytest_configure() -> None:
    os.environ |= {"SGLANG_ENABLE_LOGPROB_CHUNK": "1", "SGLANG_LOGPROB_CHUNK_SIZE": str(_LOGPROBS)}
    backend.load = load  # type: ignore[assignment]


def pytest_sessionfinish() -> None:
    for _, servers in _started.values():
        _stop(servers)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = list(ARCHITECTURES)

    def models(item: pytest.Item) -> int:
        parameters = getattr(item, "callspec", None)
        named = [names.index(value) for value in parameters.params.values() if value in names] if parameters else []
        return named[0] if named else 0

    items.sort(key=models)
