"""What is known of a model from its files alone: the weights are the server's business."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file

from rl_onoff.errors import ConfigurationError, LoadError, MissingDependency
from workers.wire import ModelSpec

_DTYPES: Final = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Described:
    config: Any
    generation_config: Any
    tokenizer: Any
    folder: Path

    @property
    def columns(self) -> int:
        """Of the logit matrix."""
        columns: int = self.config.get_text_config().vocab_size
        return columns

    @property
    def window(self) -> int | None:
        """Tokens its attention looks back, in any of its layers, where that is less than all."""
        config = self.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        return window if isinstance(window, int) and getattr(config, "use_sliding_window", True) else None

    @property
    def parameters(self) -> int:
        """Numbers in the weight files."""
        count = 0
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for n in file.get_slice(name).get_shape():
                        size *= n
                    count += size
        return count

    def dtype(self, spec: ModelSpec) -> str:
        """`auto` is the checkpoint's own. Raises ConfigurationError for one that SGLang does not compute in."""
        dtype = spec.dtype
        if dtype == "auto":
            dtype = str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ConfigurationError(f"model {spec.name}: SGLang computes in {', '.join(_DTYPES)}, not in {dtype}")
        return dtype


def describe(spec: ModelSpec, *, trust_remote_code: bool) -> Described:
    """Read configuration and tokenizer of a folder or a hub id; of the latter all files are fetched."""
    if spec.path is None:
        raise ConfigurationError(f"model {spec.name}: a LoRA adapter needs the hf backend")
    common = {"revision": spec.revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(spec.path, **common)
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **common)
        folder = Path(cached_file(spec.path, "config.json", revision=spec.revision)).parent
        if not Path(spec.path).is_dir():
            folder = _download(spec)
        try:
            generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:  # it has none
            generation_config = None
    except Exception as error:  # whatever a broken or foreign file makes the libraries raise
        raise LoadError(f"cannot load model {spec.name} from {spec.path}: {error}") from error
    return Described(config, generation_config, tokenizer, folder)


def _download(spec: ModelSpec) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependency("a hub id needs huggingface_hub: pip install huggingface_hub") from error
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    return Path(snapshot_download(str(spec.path), revision=spec.revision, allow_patterns=patterns))
