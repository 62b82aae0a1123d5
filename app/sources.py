"""Whether what the configuration names can be models at all, before a worker is started or a hub is asked."""

from __future__ import annotations

import re
from pathlib import Path

from app.config import Settings
from app.pair_config import ModelConfig, PairConfig
from rl_onoff.errors import ConfigurationError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")


def check_sources(settings: Settings) -> None:
    """Raises ConfigurationError for a model, or examples, that are plainly a path where nothing lies."""
    for pair in settings.pairs:
        for model in (pair.a, pair.b) if pair.launch == "local" else ():  # others lie on other machines
            problem = _problem(pair, model)
            if problem is not None:
                raise ConfigurationError(f"pair {pair.name}: {problem}")
        if pair.examples is not None and not Path(pair.examples).is_file():
            raise ConfigurationError(f"pair {pair.name}: there is no file {pair.examples}")


def _problem(pair: PairConfig, model: ModelConfig) -> str | None:
    match pair.backend:
        case "table":
            return None if model.path is None or Path(model.path).is_file() else f"there is no file {model.path}"
        case "hf" if model.path is not None:
            return _folder_problem(model.path, "config.json")
        case "hf" if model.adapter is not None:
            return _folder_problem(model.adapter, "adapter_config.json")
    return None


def _folder_problem(source: str, needed: str) -> str | None:
    folder = Path(source)
    if folder.is_dir():
        return None if (folder / needed).is_file() else f"the folder {source} holds no {needed}"
    if folder.exists():
        return f"{source} is no folder"
    plainly_a_path = source.startswith((".", "~", "/")) or (len(folder.parts) > 1 and Path(folder.parts[0]).is_dir())
    if plainly_a_path or not _HUB_ID.fullmatch(source):
        return f"there is no folder {source}"
    return None
