"""What is known of a model without loading its weights: configuration, tokenizer, files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file

from rl_onoff.errors import ConfigurationError, LoadError
from workers.backends.hf import load as loading
from workers.wire import ModelSpec

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    config: Any
    tokenizer: Any
    generation_config: Any
    dtype: str

    @property
    def columns(self) -> int:
        """The width of the logit matrix."""
        size: int = self.config.get_text_config().vocab_size
        return size

    @property
    def eos_ids(self) -> list[int]:
        return loading.eos_ids(self, self.tokenizer)

    @property
    def cache_width(self) -> str:
        """Key-value heads and their width."""
        config = self.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return f"{heads} x {width}"

    @property
    def layer_kinds(self) -> list[str]:
        """Of attention, where the configuration tells layers apart."""
        return sorted(set(getattr(self.config.get_text_config(), "layer_types", None) or ()))

    @property
    def cache_bytes_per_token(self) -> int:
        heads, width = map(int, self.cache_width.split(" x "))
        layers: int = self.config.get_text_config().num_hidden_layers
        return 2 * layers * heads * width * (4 if self.dtype == "float32" else 2)


def read(spec: ModelSpec, *, trust_remote_code: bool) -> Checkpoint:
    """Raises LoadError. dtype `auto` is the checkpoint's own; vLLM's `auto` would halve float32."""
    if spec.path is None:
        raise ConfigurationError(f"model {spec.name} needs a path or hub id")
    if spec.dtype not in ("auto", *DTYPES):
        raise ConfigurationError(f"model {spec.name}: dtype must be auto or one of {', '.join(DTYPES)} on vLLM")
    common = {"revision": spec.revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(spec.path, **common)
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **common)
    except Exception as error:  # whatever a broken or foreign file makes the library raise
        raise LoadError(f"cannot load model {spec.name} from {spec.path}: {error}") from error
    try:
        generation_config = GenerationConfig.from_pretrained(spec.path, revision=spec.revision)
    except OSError:  # it is optional
        generation_config = SimpleNamespace()
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = own if spec.dtype == "auto" else spec.dtype
    if dtype not in DTYPES:
        raise ConfigurationError(f"model {spec.name} is {dtype}: set its dtype to one of {', '.join(DTYPES)} on vLLM")
    return Checkpoint(config, tokenizer, generation_config, dtype)


def folder(spec: ModelSpec) -> Path:
    """Where the files lie, once the engine has fetched them."""
    return Path(cached_file(spec.path, "config.json", revision=spec.revision)).parent


def parameters(*folders: Path) -> int:
    """The numbers in all safetensors files, by their headers."""
    return sum(math.prod(entry["shape"]) for folder in folders for entry in _tensors(folder).values())


def tensor_names(folder: Path) -> list[str]:
    return list(_tensors(folder))


def _tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found |= json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found.pop("__metadata__", None)
    return found
