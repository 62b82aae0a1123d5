"""Two Hugging Face models behind one engine: loaded, compared, and checked against plain transformers."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from rl_onoff.errors import ConfigurationError, LoadError, MissingDependency, WorkerLost
from rl_onoff.policy import Lead
from rl_onoff.version import __version__
from workers import fused, scoring
from workers.backends.hf import load as loading
from workers.backends.hf import vocabulary as vocabularies
from workers.backends.hf.attention import fold_attention
from workers.backends.hf.engine import Engine
from workers.backends.hf.graphs import recorder_on
from workers.backends.hf.head import taken_apart
from workers.backends.hf.invariant import make_invariant
from workers.backends.hf.load import Loaded
from workers.backends.hf.model import HFModel
from workers.backends.hf.packed import pack
from workers.backends.hf.selfcheck import (
    MakeCache,
    check_cache,
    memory_warnings,
    noise_floors,
    pass_costs,
    recordings_fail,
)
from workers.backends.hf.slots import SlotCache
from workers.backends.hf.vocabulary import kept_eos
from workers.backends.hf.wide import tile_head
from workers.costs import PassCosts
from workers.device import works
from workers.libraries import versions
from workers.wire import Compare, Frame, ModelInfo, ModelSpec, PairInfo, WorkerSpec

T = TypeVar("T")


#: Tokens of a sequence in a pass under `strict`, at least: attention to one token has kernels of its own.
_STRICT_TOKENS = 4
#: Positions that attention reads under `strict`, a multiple of them: torch's kernel goes over so many at a time, and
#: would go over a rest in another order. What lies beyond a sequence counts for exactly nothing.
_STRICT_BUCKET = 512


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of a pair on this backend.

    float32_head: logits in float32 whatever the model's dtype. threads: torch's CPU threads (default: torch's own).
    allow_extra_tokens: serve a pair of which one tokenizer has ids the other lacks; these are cut from both.
    packed: keep wide linear layers in the form a processor's kernels read; the plain weights are given up.
    graphs: on a GPU, record small forward passes and replay them (CUDA graphs).
    strict: rows do not depend on what is computed with them, so that lookahead equals lock-step in half precision too.
    Costs what docs/lookahead.md measured.
    """

    float32_head: bool = True
    threads: int | None = None
    allow_extra_tokens: bool = False
    packed: bool = True
    graphs: bool = True
    strict: bool = False


class HFPair:
    def __init__(
        self, info: PairInfo, engine: Engine, a: HFModel, b: HFModel, pass_costs: Mapping[Lead, PassCosts]
    ) -> None:
        self.info, self._engine, self.a, self.b = info, engine, a, b
        self.pass_costs = pass_costs

    @property
    def steps(self) -> int:
        return self._engine.steps

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await self._engine.compute(function, *args)

    async def compare(self, job: Compare) -> AsyncIterator[Frame]:
        """As `scoring.compare`: where the models could be taken apart, without rows."""
        device = self.info.a.device
        # Kernels on a GPU take no float64.
        within_reach = device == "cpu" or (
            device.startswith("cuda") and self.info.a.dtype != "float64" and works(device)
        )
        if self.a.head is None or self.b.head is None or self.info.b.device != device or not within_reach:
            async for frame in scoring.compare(self, job):
                yield frame
            return
        async with self.a.sequence() as a, self.b.sequence() as b:
            async for frame in fused.compare(self, job, a, b, self.a.logits, self.b.logits):
                yield frame

    async def until_lost(self) -> WorkerLost:
        return await self._engine.until_lost()

    async def close(self) -> None:
        await self._engine.close()


def load(spec: WorkerSpec) -> HFPair:
    """Load a pair.

    Raises a `LoadError`: not found, no shared tokenizer, an architecture that cannot be run exactly, too little memory.
    """
    try:
        # OpenMP keeps threads for every thread that used it, and where these are more than processors none may spin.
        # Those of the loading would be idle, and in the way of the engine's: they end with their thread.
        with ThreadPoolExecutor(1, thread_name_prefix="load") as executor:
            return executor.submit(_load, spec).result()
    except torch.OutOfMemoryError as error:
        raise LoadError(f"pair {spec.pair} does not fit into its device's memory: {error}") from error


def _load(spec: WorkerSpec) -> HFPair:
    try:
        options = msgspec.convert(spec.options, Options)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"options of pair {spec.pair}: {error}") from error
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    common = {"trust_remote_code": spec.trust_remote_code, "float32_head": options.float32_head}
    a = loading.load_model(spec.a, **common)
    scopes: tuple[Callable[[], AbstractContextManager[Any]], ...] = (nullcontext, nullcontext)
    if spec.b.adapter is not None:
        model, scopes = _with_adapter(a.model, spec.b.adapter)
        a, b = replace(a, model=model), replace(a, model=model)
    else:
        b = loading.load_model(spec.b, **common)
    if not options.strict:  # a row's bits would hang on how many share a product
        for model in (a.model, b.model):
            fold_attention(model)
    vocabulary = vocabularies.shared(a.tokenizer, b.tokenizer, options.allow_extra_tokens)
    vocab_size = min(vocabulary.size, _columns(a.model), _columns(b.model))
    infos = [_info(spec, side, one, vocab_size) for side, one in (("a", a), ("b", b))]
    for one, info, scope in zip((a, b), infos, scopes, strict=True):
        with scope():
            check_cache(one.model, info)
    both = [a.model, b.model]
    for model in both:
        if options.packed:
            pack(model)
        if options.strict:
            make_invariant(model)
        else:
            tile_head(model)
    for info in infos:
        if info.device.startswith("cuda"):
            works(info.device)  # compiles them before the first request
    caches, unrecorded = [], []
    for model, info, scope in zip(both, infos, scopes, strict=True):
        make, failure = _cache_maker(model, info, scope, options)
        caches.append(make)
        if failure is not None:
            unrecorded.append(f"model {info.name}: forward passes are not recorded as CUDA graphs: {failure}")
    noise = noise_floors(caches, infos, spec.sequences)
    costs = pass_costs(caches, infos, spec.sequences)
    if any(model.device.type == "cuda" for model in both):
        gc.collect()  # caches and recordings that were tried refer to themselves
        torch.cuda.empty_cache()
    engine = Engine()
    model_a, model_b = (
        HFModel(info, engine, make(spec.sequences), scope, taken_apart(model, scope), a.model.device)
        for model, info, make, scope in zip(both, infos, caches, scopes, strict=True)
    )
    return HFPair(
        PairInfo(
            name=spec.pair,
            backend="hf",
            version=__version__,
            libraries=versions(),
            a=infos[0],
            b=infos[1],
            tokenizer=vocabularies.tokenizer_json(a.tokenizer, spec.a.name),
            special_tokens={k: v for k, v in a.tokenizer.special_tokens_map.items() if isinstance(v, str)},
            warnings=[*vocabulary.warnings, *unrecorded, *memory_warnings(both, infos, spec.sequences)],
            noise=noise,
        ),
        engine,
        model_a,
        model_b,
        costs,
    )


def _cache_maker(
    model: Any, info: ModelInfo, scope: Callable[[], AbstractContextManager[Any]], options: Options
) -> tuple[MakeCache, str | None]:
    """What makes caches of the model, with recordings where the device gains by them; why not, if these were to be."""
    plain = partial(SlotCache, model, max_len=info.max_len, scope=scope)
    if options.strict:
        plain = partial(plain, least=_STRICT_TOKENS, bucket=_STRICT_BUCKET)
    make_recorder = recorder_on(model.device) if options.graphs else None
    if make_recorder is None:
        return plain, None
    recorded = partial(plain, make_recorder=make_recorder)
    failure = recordings_fail(plain, recorded, info)
    return (recorded if failure is None else plain), failure


def _with_adapter(base: Any, adapter: str) -> tuple[Any, tuple[Callable[[], AbstractContextManager[Any]], ...]]:
    """B as a LoRA adapter over A's weights: one copy of them, the adapter on or off around each pass."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependency.of("peft", "lora", "a LoRA adapter") from error
    if not Path(adapter).is_dir():
        raise ConfigurationError(f"there is no adapter folder {adapter}")
    try:
        model = PeftModel.from_pretrained(base, adapter).eval().requires_grad_(False)
    except Exception as error:
        raise LoadError(f"cannot load the adapter {adapter}: {error}") from error
    return model, (model.disable_adapter, nullcontext)


def _columns(model: Any) -> int:
    columns: int = model.get_output_embeddings().weight.shape[0]
    return columns


def _info(spec: WorkerSpec, side: str, loaded: Loaded, vocab_size: int) -> ModelInfo:
    model_spec: ModelSpec = spec.a if side == "a" else spec.b
    max_len = loading.context_length(loaded.model, spec.max_len)
    folders = [loaded.folder, *([Path(model_spec.adapter)] if model_spec.adapter else [])]
    return ModelInfo(
        name=model_spec.name,
        source=model_spec.adapter or model_spec.path or "",
        revision=model_spec.revision,
        fingerprint=loading.fingerprint(*folders),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.model.device),
        vocab_size=vocab_size,
        logit_columns=_columns(loaded.model),
        max_len=max_len,
        eos_ids=kept_eos(model_spec.name, loading.eos_ids(loaded.model, loaded.tokenizer), vocab_size),
        chat_template=loading.chat_template(loaded.tokenizer),
        parameters=sum(p.numel() for p in loaded.model.parameters()),
    )
