"""What an operator may set for a pair on this backend, and the arguments of the servers that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from rl_onoff.errors import ConfigurationError
from workers.wire import ModelInfo, ModelSpec, Side, WorkerSpec

#: Ours to set: exactness, isolation or the link hang on them.
_OURS: Final = frozenset(
    [
        *("model_path", "host", "port", "api_key", "admin_api_key", "device", "base_gpu_id", "dtype", "context_length"),
        *("trust_remote_code", "skip_tokenizer_init", "disable_overlap_schedule", "disable_radix_cache"),
        *("enable_custom_logit_processor", "dp_size", "speculative_algorithm"),
        *("disable_prefill_cuda_graph", "cuda_graph_backend_prefill"),
    ]
)
#: Tokens of key-value cache of a server on a CPU, at least: SGLang would take most of the memory there is.
_CPU_TOKENS: Final = 16_384
#: SGLang keeps a few positions of a context for itself, and silently generates less where they are touched.
_ROOM: Final = 16
#: What two servers on one device take of the memory that is free when each is started, the second after the first: 0.42
#: of the device for each one's weights and cache. The rest is for graphs and activations.
_SHARES: Final = {"a": 0.42, "b": 0.72}


class Remote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that somebody else runs, of the model that the pair names. `key_file` holds its API key."""

    url: str
    key_file: str | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of a pair.

    server: arguments of SGLang's own, by name (`tp_size: 2`), for both servers; server_a, server_b: for one of them.
    float32_head: logits in float32 whatever the model's dtype (`--enable-fp32-lm-head`).
    allow_extra_tokens: serve a pair of which one tokenizer has ids the other lacks; these are cut from both.
    threads: OpenMP threads of each server on a CPU. start_seconds: how long loading may take.
    remote_a, remote_b: use this server instead of starting one; slower, and trusted to have the same weights.
    """

    server: dict[str, Any] = {}
    server_a: dict[str, Any] = {}
    server_b: dict[str, Any] = {}
    float32_head: bool = True
    allow_extra_tokens: bool = False
    threads: int = 1
    start_seconds: float = 1800.0
    remote_a: Remote | None = None
    remote_b: Remote | None = None


def options_of(spec: WorkerSpec) -> Options:
    """Raises ConfigurationError."""
    try:
        options = msgspec.convert(spec.options, Options)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"options of pair {spec.pair}: {error}") from error
    for name in (*options.server, *options.server_a, *options.server_b):
        if name.replace("-", "_") in _OURS:
            raise ConfigurationError(f"options of pair {spec.pair}: {name} is not for you to set")
    return options


def arguments(spec: WorkerSpec, side: Side, options: Options, info: ModelInfo, folder: Path) -> list[str]:
    """SGLang's command line for one model, address and key aside."""
    model = spec.a if side == "a" else spec.b
    device, _, index = device_of(model).partition(":")
    named: dict[str, Any] = {
        "model_path": str(folder),
        "device": device,
        "dtype": info.dtype,
        "context_length": info.max_len + _ROOM,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "sleep_on_idle": True,
        "disable_overlap_schedule": True,
        "max_running_requests": spec.sequences,
        "log_level": "warning",
        "enable_fp32_lm_head": options.float32_head and info.dtype != "float32",
    }
    if device == "cpu":
        named |= {
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "disable_cuda_graph": True,
            "max_total_tokens": max(_CPU_TOKENS, 2 * (info.max_len + _ROOM)),
        }
    else:
        # Rows of prompts go with their requests' ids, which SGLang's graphs of prefills know nothing of.
        named |= {"base_gpu_id": int(index or 0), "page_size": 1, "disable_prefill_cuda_graph": True}
        if on_one_gpu(spec, options):
            named["mem_fraction_static"] = _SHARES[side]
    for given in (options.server, options.server_a if side == "a" else options.server_b):
        named |= {name.replace("-", "_"): value for name, value in given.items()}
    return [word for name, value in named.items() for word in _words(name, value)]


def device_of(model: ModelSpec) -> str:
    if model.device != "auto":
        return model.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_one_gpu(spec: WorkerSpec, options: Options) -> bool:
    """Whether both servers are ours to start, on the same device, and that is no processor."""
    a, b = (device_of(model).partition(":") for model in (spec.a, spec.b))
    same = a[0] == b[0] != "cpu" and int(a[2] or 0) == int(b[2] or 0)
    return same and options.remote_a is None and options.remote_b is None


def environment(model: ModelSpec, options: Options) -> dict[str, str]:
    """Variables of the server. On a CPU more threads than cores, spinning, starve the other server."""
    allowed = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}  # by `_ROOM`, where no token ever comes
    if device_of(model) != "cpu":
        return allowed
    return {**allowed, "SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": str(options.threads)}


def _words(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    match value:
        case None | False:
            return []
        case True:
            return [flag]
        case list():
            return [flag, *map(str, value)]
        case dict():
            return [flag, json.dumps(value)]
        case _:
            return [flag, str(value)]
