"""Values of a row's columns, each checked for what it is to be: `Wrong` says what it is not."""

from __future__ import annotations

import json
from typing import Any

from rl_onoff.schemas import MAX_INT


class Wrong(Exception):
    """What is wrong with a row."""


def identifier(fields: dict[str, Any], column: str) -> str:
    value = fields.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Wrong(f"column {column!r}: an id must be text or an integer")
    return encodable(str(value), column)


def text(fields: dict[str, Any], column: str | None, role: str, ids: str | None = None) -> str:
    """`ids`: the column whose ids would have done as well."""
    if column is None or column not in fields:
        raise Wrong(f"column {column or ids!r} for the {role} is missing")
    value = fields[column]
    if not isinstance(value, str):
        raise Wrong(f"column {column!r}: a {role} must be text, not {type(value).__name__}")
    if not value:
        raise Wrong(f"column {column!r}: the {role} is empty")
    return encodable(value, column)


def ids(fields: dict[str, Any], column: str | None, *, as_json: bool) -> list[int] | None:
    """A row's token ids in this column, None where it has none there. `as_json`: the list is text."""
    value = None if column is None else fields.get(column)
    if value is None or (as_json and value == ""):
        return None
    if as_json:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Wrong(f"column {column!r}: token ids must be a list in JSON, such as [3, 1]") from None
    if not isinstance(value, list):
        raise Wrong(f"column {column!r}: token ids must be a list of integers, not {type(value).__name__}")
    if not value:
        raise Wrong(f"column {column!r}: there are no token ids in the list")
    for index, each in enumerate(value):
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_INT:
            raise Wrong(f"column {column!r}: entry {index} is no token id: {str(each)[:40]}")
    return value


def messages(value: Any, column: str) -> list[dict[str, str]]:
    """In the usual form, or in ShareGPT's (from, value)."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"column {column!r}: messages must be a list of role and content")
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for message in value:
        if not isinstance(message, dict):
            raise Wrong(f"column {column!r}: a message must have a role and a content")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not (isinstance(role, str) and isinstance(content, str)):
            raise Wrong(f"column {column!r}: a message must have a role and a content")
        found.append({"role": roles.get(role, role), "content": encodable(content, column)})
    return found


def encodable(value: str, column: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong(f"column {column!r}: the text is no valid Unicode") from None
    return value
