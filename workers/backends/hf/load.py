"""Loading Hugging Face models: files, precision, fingerprints."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from rl_onoff.errors import ConfigurationError, LoadError, UnsupportedModel
from workers.backends.digests import Digests
from workers.wire import ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja", "*.model")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device with what belongs to it."""

    model: Any
    tokenizer: Any
    folder: Path


def device_of(spec: ModelSpec) -> str:
    return spec.device if spec.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def load_model(spec: ModelSpec, *, trust_remote_code: bool, float32_head: bool) -> Loaded:
    """Load a causal language model and its tokenizer, in inference mode.

    dtype `auto` is the checkpoint's own. With `float32_head` a model in half precision computes its logits in
    float32: rounding them to bfloat16 alone makes a divergence of 2e-5 nats, more than many real ones.
    """
    if spec.path is None:
        raise ConfigurationError(f"model {spec.name} needs a path or hub id")
    if spec.dtype not in ("auto", *_DTYPES):
        raise ConfigurationError(f"model {spec.name}: dtype must be auto or one of {', '.join(_DTYPES)}")
    common = {"revision": spec.revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **common)
        model = AutoModelForCausalLM.from_pretrained(
            spec.path,
            dtype=_DTYPES.get(spec.dtype, "auto"),
            use_safetensors=True,
            **common,
        )
        folder = Path(cached_file(spec.path, "config.json", revision=spec.revision)).parent
    except Exception as error:  # whatever a broken or foreign file makes the libraries raise
        raise LoadError(f"cannot load model {spec.name} from {spec.path}: {error}") from error
    device = device_of(spec)
    try:
        model = model.to(device).eval().requires_grad_(False)
    except Exception as error:
        raise LoadError(f"cannot put model {spec.name} on device {device}: {error}") from error
    if float32_head and model.dtype in (torch.bfloat16, torch.float16):
        upcast_head(model)
    return Loaded(model, tokenizer, folder)


class Float32Head(torch.nn.Module):
    """An output embedding in float32 over hidden states of any dtype."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(head.weight.detach().float(), requires_grad=False)
        bias = None if head.bias is None else torch.nn.Parameter(head.bias.detach().float(), requires_grad=False)
        self.bias = bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


def upcast_head(model: Any) -> None:
    """Replace the output embedding by a float32 copy (which unties it from the input embedding)."""
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        model.set_output_embeddings(Float32Head(head))


def fingerprint(*folders: Path) -> str:
    """SHA-256 over names and contents of a model's weights, configuration and tokenizer files.

    A file that was hashed before and has kept its place, size and time is not read again: a worker that is restarted
    should not read hundreds of gigabytes twice.
    """
    digest = hashlib.sha256()
    known = Digests.load()
    for folder in folders:
        for path in sorted({path for pattern in _FINGERPRINTED for path in folder.glob(pattern)}):
            digest.update(path.name.encode() + b"\0" + known.of(path))
    known.save()
    return digest.hexdigest()


def context_length(model: Any, cap: int | None) -> int:
    """The longest sequence the model's positions reach, or `cap` if that is less.

    Raises UnsupportedModel for a length at which the position encoding changes with the longest sequence of a batch:
    a row would depend on its neighbours.
    """
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) and cap is None:
        raise UnsupportedModel(f"{config.model_type} names no max_position_embeddings; set max_len for the pair")
    length = min(n for n in (length, cap) if isinstance(n, int))
    for rope in _rope_parameters(config):
        kind = rope.get("rope_type", "default")
        steady = {
            "dynamic": rope.get("original_max_position_embeddings") or config.max_position_embeddings,
            "longrope": rope.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", 0),
        }.get(kind, length)
        if length > steady:
            raise UnsupportedModel(
                f"with {kind} rotary positions a row beyond {steady} tokens depends on the other sequences of its "
                f"batch: set max_len to {steady} or less"
            )
    return length


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The model's rotary settings: one dictionary, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "rope_type" in found or not all(isinstance(value, dict) for value in found.values()):
        return [found]
    return list(found.values())


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """All ids that end a sequence: the generation config's, the config's, the tokenizer's."""
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        found |= {value} if isinstance(value, int) else set(value or ())
    return sorted(found)


def chat_template(tokenizer: Any) -> str | None:
    templates = tokenizer.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    return template if isinstance(template, str) else None
