"""Pydantic's findings in the words of the API: fields by their paths in the JSON body, without the values.

The SDK uses this before it sends a request, the service after it has received one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rl_onoff.schemas import FIELD_ERROR

MAX_FINDINGS: Final = 20
_MAX_NAME: Final = 64


def describe(findings: Sequence[Mapping[str, Any]], body: Any) -> list[dict[str, str]]:
    """Each finding once, as `field` and `message`; `body` is what was validated, and what every `loc` starts from."""
    described = []
    for finding in findings[:MAX_FINDINGS]:
        entry = {"field": path(finding, body), "message": message(finding)}
        if entry not in described:
            described.append(entry)
    return described


def path(finding: Mapping[str, Any], body: Any) -> str:
    """The field's path as in the JSON body: pydantic's own path also names the union members it tried."""
    parts: list[str] = []
    here = body
    *steps, last = finding["loc"] or [None]
    for step in steps:
        if (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int)):
            parts.append(str(step))
            here = here[step]
    missing = finding["type"] == "missing"
    if last is not None and (missing or (isinstance(here, dict) and last in here) or isinstance(last, int)):
        parts.append(str(last))
    if finding["type"] == FIELD_ERROR:  # found where several fields meet, and the fault of one
        parts.append(finding["ctx"]["field"])
    return ".".join(part[:_MAX_NAME].encode("utf-8", "replace").decode() for part in parts)


def message(finding: Mapping[str, Any]) -> str:
    """What is wrong, without the value."""
    match finding["type"]:
        case "value_error":
            return str(finding["msg"]).removeprefix("Value error, ")
        case "union_tag_invalid":  # pydantic's message holds the value
            return f"must be one of {finding['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{str(finding['ctx']['discriminator']).strip(chr(39))} is required"
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "is required"
        case _:
            return str(finding["msg"])
