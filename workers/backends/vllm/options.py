"""What an operator may say about a pair on vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from rl_onoff.errors import ConfigurationError

#: Engine arguments this backend sets itself.
_OWN = frozenset(
    {
        "model",
        "tokenizer",
        "revision",
        "dtype",
        "max_model_len",
        "trust_remote_code",
        "skip_tokenizer_init",
        "worker_extension_cls",
        "scheduler_cls",
        "speculative_config",
        "async_scheduling",
        "enable_prefix_caching",
        "enable_lora",
        "max_loras",
        "max_lora_rank",
        "logits_processors",
        "data_parallel_size",
        "pipeline_parallel_size",
    }
)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of a pair on this backend.

    engine: vLLM engine arguments for both models (`tensor_parallel_size`, `quantization`, `enforce_eager`, ...);
    engine_a and engine_b: for one of them, over those. `gpu_memory_utilization` is each engine's own share of the
    device (default: 0.45 each; 0.9 where B is an adapter or `device` of the models, cuda:0 and cuda:1 say, puts them on
    different ones). float32_head: logits in float32 whatever the dtype.
    allow_extra_tokens: serve a pair of which one tokenizer has ids the other lacks; these are cut from both.
    engines: `two`, or `one` that holds A as its draft model and B as its target, with drafts of draft_tokens tokens.
    """

    engine: dict[str, Any] = {}
    engine_a: dict[str, Any] = {}
    engine_b: dict[str, Any] = {}
    float32_head: bool = True
    allow_extra_tokens: bool = False
    engines: Literal["two", "one"] = "two"
    draft_tokens: Annotated[int, msgspec.Meta(ge=1, le=32)] = 8

    def __post_init__(self) -> None:
        for name in ("engine", "engine_a", "engine_b"):
            own = sorted(_OWN & getattr(self, name).keys())
            if own:
                raise ValueError(f"{name}: {', '.join(own)} cannot be set here")
        if self.engines == "one" and (self.engine_a or self.engine_b):
            raise ValueError("engine_a and engine_b are for two engines: where there is one, set engine")
        if self.engines == "one" and self.engine.get("tensor_parallel_size", 1) != 1:
            raise ValueError("one engine for both models has not been tried with tensor parallelism: use two")


def options_of(pair: str, values: dict[str, Any]) -> Options:
    """Raises ConfigurationError."""
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"options of pair {pair}: {error}") from error
