"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rl_onoff.errors import PROBLEM_PREFIX

PREFIX: Final = "/v1"

_CODES: Final = {
    "unknown-model": "model_not_found",
    "context-exceeded": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
    "overloaded": "rate_limit_exceeded",
}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def speaks(path: str) -> bool:
    """Whether errors of this path have OpenAI's shape."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def status(problem_status: int) -> int:
    """OpenAI calls a wrong field a bad request."""
    return 400 if problem_status == 422 else problem_status


def error_body(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The body for a problem; what OpenAI has no member for stands beside its own."""
    slug = str(problem["type"]).removeprefix(PROBLEM_PREFIX)
    number = status(problem["status"])
    fields = [error["field"] for error in problem.get("errors", []) if error.get("field")]
    own = {name: problem[name] for name in ("request_id", "retryable", "limit", "actual") if name in problem}
    return {
        "error": {
            "message": problem["detail"],
            "type": _TYPES.get(number, "invalid_request_error" if number < 500 else "server_error"),
            "param": fields[0] if fields else "model" if slug == "unknown-model" else None,
            "code": _CODES.get(slug, slug.replace("-", "_")),
            **own,
        }
    }
