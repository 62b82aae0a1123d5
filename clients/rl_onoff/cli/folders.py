"""Model folders in the Hugging Face layout, read without transformers: tokenizer, configuration, chat template."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx

from rl_onoff.errors import ConfigurationError, LoadError, MissingDependency

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.jinja"]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files beside the weights say.

    `pieces` maps ids to tokens, `segmentation` holds all else of tokenizer.json: how text is cut into them.
    """

    pieces: dict[int, str]
    segmentation: dict[str, Any]
    architecture: str
    columns: int | None
    context: int | None
    eos_ids: list[int]
    bos_ids: list[int]
    chat_template: str | None
    generation: dict[str, Any]


def locate(source: str) -> Path:
    """The folder of a model: `source` itself, or what the hub's client has or downloads for that id (no weights)."""
    if (folder := Path(source)).is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise ConfigurationError(f"there is no folder {source}")
    try:
        hub = import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"there is no folder {source}; to look for it on the hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(hub.snapshot_download(source, allow_patterns=_FILES))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise LoadError(f"there is no folder {source}, and the hub has none to give: {error}") from error


def read(folder: Path) -> ModelFolder:
    """Raises ConfigurationError where a file is missing or unreadable."""
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    generation = _json(folder / "generation_config.json", optional=True)
    tokenizer_config = _json(folder / "tokenizer_config.json", optional=True)
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer.get("model", {})
    added = tokenizer.get("added_tokens", [])
    return ModelFolder(
        pieces=_vocabulary(model, folder) | {token["id"]: token["content"] for token in added},
        segmentation={
            "model": {name: value for name, value in model.items() if name != "vocab"},
            **{name: tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")},
        },
        architecture=", ".join(config.get("architectures") or [str(config.get("model_type", "unknown"))]),
        columns=text.get("vocab_size"),
        context=text.get("max_position_embeddings"),
        eos_ids=_ids(generation.get("eos_token_id", text.get("eos_token_id"))),
        bos_ids=_ids(generation.get("bos_token_id", text.get("bos_token_id"))),
        chat_template=_chat_template(folder, tokenizer_config),
        generation={name: value for name, value in generation.items() if not name.endswith(("_id", "_version"))},
    )


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ConfigurationError(f"{path.parent} holds no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} holds no JSON object")
    return document


def _vocabulary(model: dict[str, Any], folder: Path) -> dict[int, str]:
    match model.get("vocab"):
        case dict() as vocabulary:  # BPE, WordPiece, WordLevel: piece -> id
            return {number: piece for piece, number in vocabulary.items()}
        case list() as pieces:  # Unigram: [piece, score] in the order of ids
            return {number: piece for number, (piece, _) in enumerate(pieces)}
        case _:
            raise ConfigurationError(f"{folder / 'tokenizer.json'} holds no vocabulary")


def _ids(value: int | list[int] | None) -> list[int]:
    return sorted(value) if isinstance(value, list) else [] if value is None else [value]


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
