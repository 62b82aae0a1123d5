"""Two models in vLLM engines: loaded, compared, and checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rl_onoff.errors import LoadError, UnsupportedModel, WorkerLost
from rl_onoff.policy import Lead
from rl_onoff.version import __version__
from workers.backends.hf import load as loading
from workers.backends.hf import vocabulary as vocabularies
from workers.backends.hf.vocabulary import kept_eos
from workers.backends.vllm import checkpoint
from workers.backends.vllm.calls import Answer
from workers.backends.vllm.checkpoint import Checkpoint
from workers.backends.vllm.extension import Wish
from workers.backends.vllm.options import Options, options_of
from workers.backends.vllm.start import engine_of, prepare, version_warnings
from workers.costs import PassCosts
from workers.libraries import versions
from workers.wire import (
    Done,
    Frame,
    Generate,
    ModelInfo,
    ModelSpec,
    PairInfo,
    Tokens,
    Usage,
    WorkerSpec,
)

if TYPE_CHECKING:  # they import vLLM, which `prepare` comes before
    from workers.backends.vllm.engine import Driver
    from workers.backends.vllm.model import VLLMModel

T = TypeVar("T")

#: The sizes vLLM has room for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class VLLMPair:
    def __init__(self, info: PairInfo, driver: Driver, a: VLLMModel, b: VLLMModel) -> None:
        self.info, self._driver, self.a, self.b = info, driver, a, b
        self.pass_costs: Mapping[Lead, PassCosts] = {"a": a.costs, "b": b.costs}

    @property
    def steps(self) -> int:
        return self._driver.steps

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await self._driver.compute(function, *args)

    async def generate(self, job: Generate) -> AsyncIterator[Frame]:
        """As `workers.generation.generate`."""
        model, info = (self.a, self.info.a) if job.side == "a" else (self.b, self.info.b)
        eos = frozenset() if job.ignore_eos else frozenset(info.eos_ids)
        wish = Wish(sampling=job.sampling, news=True, describe=job.logprobs)
        passes, last = 0, -1
        async with model.sequence(), aclosing(model.stream(job.ids, wish, job.max_tokens, eos)) as news:
            async for new in news:
                passes = new.passes if isinstance(new, Answer) else passes + 1
                usage = Usage(a_forwards=passes) if job.side == "a" else Usage(b_forwards=passes)
                if isinstance(new, Answer):
                    yield Done(usage, "stop" if last in eos else "length")
                    return
                last = new.tokens[-1]
                yield Tokens(
                    new.tokens,
                    usage,
                    logprobs=[logprob for logprob, _, _ in new.described],
                    top_ids=[ids for _, ids, _ in new.described],
                    top_logprobs=[values for _, _, values in new.described],
                )

    async def until_lost(self) -> WorkerLost:
        return await self._driver.until_lost()

    async def close(self) -> None:
        await self._driver.close()


def load(spec: WorkerSpec) -> VLLMPair:
    """Load a pair. Raises a `LoadError`: not found, no shared tokenizer, an engine that does not start."""
    options = options_of(spec.pair, spec.options)
    prepare()
    from workers.backends.vllm.engine import Driver
    from workers.backends.vllm.model import VLLMModel
    from workers.backends.vllm.selfcheck import check
    from workers.backends.vllm.single import SingleModel, SinglePair

    a = checkpoint.read(spec.a, trust_remote_code=spec.trust_remote_code)
    b = a if spec.b.adapter else checkpoint.read(spec.b, trust_remote_code=spec.trust_remote_code)
    vocabulary = vocabularies.shared(a.tokenizer, b.tokenizer, options.allow_extra_tokens)
    vocab_size = min(vocabulary.size, a.columns, b.columns)
    if options.engines == "one":
        _fit_in_one(spec, a, b, options)
    driver = Driver()
    try:
        adapter, lora_arguments = _adapter(spec.b) if spec.b.adapter else (None, {})
        models: list[VLLMModel]
        if options.engines == "one":
            engine = driver.here(engine_of, driver, spec, "b", b, options, vocab_size, *_drafting(spec, a, options))
            infos = _infos(spec, a, b, vocab_size)
            models = [
                SingleModel(engine, info, driver, spec.sequences, drafter=drafter)
                for info, drafter in zip(infos, (True, False), strict=True)
            ]
        else:
            engine_a = driver.here(engine_of, driver, spec, "a", a, options, vocab_size, lora_arguments)
            engine_b = engine_a if adapter else driver.here(engine_of, driver, spec, "b", b, options, vocab_size, {})
            infos = _infos(spec, a, b, vocab_size)
            models = [
                VLLMModel(engine, info, driver, spec.sequences, lora)
                for engine, info, lora in ((engine_a, infos[0], None), (engine_b, infos[1], adapter))
            ]
        with ThreadPoolExecutor(1) as aside:  # this thread may have an event loop running
            noise = aside.submit(asyncio.run, check(*models)).result()
    except WorkerLost as error:
        driver.stop()
        raise LoadError(f"pair {spec.pair}: vLLM failed over the first passes; its log says why") from error
    except BaseException:
        driver.stop()
        raise
    info = PairInfo(
        name=spec.pair,
        backend="vllm",
        version=__version__,
        libraries=versions(),
        a=infos[0],
        b=infos[1],
        tokenizer=vocabularies.tokenizer_json(a.tokenizer, spec.a.name),
        special_tokens={k: v for k, v in a.tokenizer.special_tokens_map.items() if isinstance(v, str)},
        warnings=[*vocabulary.warnings, *version_warnings()],
        noise=noise,
    )
    if options.engines == "one":
        return SinglePair(info, driver, *models, sequences=spec.sequences, drafted=options.draft_tokens)
    return VLLMPair(info, driver, *models)


def _fit_in_one(spec: WorkerSpec, a: Checkpoint, b: Checkpoint, options: Options) -> None:
    """Raises UnsupportedModel for what one engine of vLLM cannot hold."""
    if spec.b.adapter:
        raise UnsupportedModel("engines: one is for two whole models; an adapter shares its base's engine in any case")
    if options.float32_head and a.dtype != "float32":
        raise UnsupportedModel(
            f"one engine computes {a.dtype} logits of its draft model in {a.dtype}: leave engines at two, or accept it "
            "with float32_head: false"
        )
    if len(a.layer_kinds) > 1:
        raise UnsupportedModel(
            f"model {spec.a.name} mixes {' and '.join(a.layer_kinds)}: vLLM 0.32 takes no such draft model; "
            "leave engines at two"
        )
    lengths = [loading.context_length(model, spec.max_len) for model in (a, b)]
    for what, ours, theirs in (
        ("columns of logits", a.columns, b.columns),
        ("dtype", a.dtype, b.dtype),
        ("numbers of a token in a layer's cache", a.cache_width, b.cache_width),
        ("length of context (set max_len)", *lengths),
    ):
        if ours != theirs:
            raise UnsupportedModel(
                f"one engine cannot hold the pair, which differs in {what}: {ours} and {theirs}; leave engines at two"
            )


def _drafting(spec: WorkerSpec, a: Checkpoint, options: Options) -> tuple[dict[str, Any], int]:
    """What makes A the draft model of B's engine, and the bytes its cache takes a token."""
    drafting = {
        "method": "draft_model",
        "model": spec.a.path,
        "revision": spec.a.revision,
        "num_speculative_tokens": options.draft_tokens,
        "quantization": options.engine.get("quantization"),
    }
    return {"speculative_config": drafting}, a.cache_bytes_per_token


def _adapter(spec: ModelSpec) -> tuple[Any, dict[str, Any]]:
    """B as a LoRA adapter over A's weights: the request that names it, and what its engine has to know."""
    from vllm.lora.request import LoRARequest

    folder = Path(spec.adapter or "")
    try:
        rank = int(json.loads((folder / "adapter_config.json").read_text())["r"])
        names = checkpoint.tensor_names(folder)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"cannot load the adapter {folder}: {error}") from error
    # Rows of a prompt are computed by the base model's own output embedding (`extension`).
    foreign = [name for name in names if "lm_head" in name or "embed" in name]
    if foreign or not names:
        found = f"it changes {foreign[0]}" if foreign else "it has no *.safetensors"
        raise UnsupportedModel(f"the adapter {folder} cannot be served by vLLM here: {found}; merge it into its base")
    fitting = next((limit for limit in _LORA_RANKS if limit >= rank), None)
    if fitting is None:
        raise UnsupportedModel(f"the adapter {folder} has rank {rank}; vLLM takes up to {_LORA_RANKS[-1]}")
    # Two places, or requests without the adapter would get its output in a batch with those that name it.
    return LoRARequest(spec.name, 1, str(folder)), {"enable_lora": True, "max_loras": 2, "max_lora_rank": fitting}


def _infos(spec: WorkerSpec, a: Checkpoint, b: Checkpoint, vocab_size: int) -> list[ModelInfo]:
    """Of both models, whose files the engines have fetched."""
    return [_info(spec, side, model, vocab_size) for side, model in (("a", a), ("b", b))]


def _info(spec: WorkerSpec, side: str, model: Checkpoint, vocab_size: int) -> ModelInfo:
    from vllm.platforms import current_platform

    model_spec = spec.a if side == "a" else spec.b
    folders = [checkpoint.folder(spec.a if model_spec.adapter else model_spec)]
    if model_spec.adapter:
        folders.append(Path(model_spec.adapter))
    return ModelInfo(
        name=model_spec.name,
        source=model_spec.adapter or model_spec.path or "",
        revision=model_spec.revision,
        fingerprint=loading.fingerprint(*folders),
        dtype=model.dtype,
        device=current_platform.device_type,
        vocab_size=vocab_size,
        logit_columns=model.columns,
        max_len=loading.context_length(model, spec.max_len),
        eos_ids=kept_eos(model_spec.name, model.eos_ids, vocab_size),
        chat_template=loading.chat_template(model.tokenizer),
        parameters=checkpoint.parameters(*folders),
    )
