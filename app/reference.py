"""`python -m app.reference`: docs/configuration.md, made of the settings' own classes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.config import Limits, Settings
from app.pair_config import ModelConfig, PairConfig, RayConfig

_PATH = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_HEAD = """# Configuration

Made by `python -m app.reference` from `app/config.py`; do not edit.

A setting is a key of `models.yaml` (`rl-onoff serve --config`, or `RL_ONOFF_CONFIG`) or a variable of the environment,
`RL_ONOFF_` and its name in capitals; of a section, `RL_ONOFF_SECTION__NAME`, such as `RL_ONOFF_LIMITS__ITEMS=64`. The
environment comes first. Lists and mappings are JSON there. What no setting is called so is refused in the file.
"""
_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The process", "", Settings),
    ("A pair", "An entry of `pairs`.", PairConfig),
    (
        "A model",
        "`a` and `b` of a pair: a folder or a hub id; or, for `b` alone, a LoRA adapter over A's weights.",
        ModelConfig,
    ),
    ("`ray` of a pair", "", RayConfig),
    ("`limits`", "", Limits),
)


def reference() -> str:
    """The document, in Markdown."""
    return "\n".join([_HEAD, *(part for title, text, model in _SECTIONS for part in _section(title, text, model))])


def _section(title: str, text: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n"
    said = text or (" ".join((model.__doc__ or "").split()) if model is not Settings else "")
    if said:
        yield f"{said}\n"
    yield "| name | type | default | |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        notes = "; ".join(filter(None, (_bounds(field), field.description)))
        yield "| " + " | ".join((f"`{name}`", _cell(_type(field.annotation)), _default(field), _cell(notes))) + " |"
    yield ""


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if origin is not None and arguments:  # Annotated
        return _type(arguments[0])
    plain = {
        "str": "text",
        "bytes": "text",
        "SecretStr": "text",
        "float": "number",
        "int": "integer",
        "bool": "true or false",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return plain.get(name, {"Path": "path", "Any": "anything"}.get(name, name))


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join(
        f"{sign} {getattr(one, key)}" for one in field.metadata for key, sign in signs.items() if hasattr(one, key)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined:
        return "the demo pair"
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    _PATH.write_text(reference(), encoding="utf-8")
