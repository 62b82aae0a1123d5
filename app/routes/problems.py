"""The error responses every route documents."""

from __future__ import annotations

from typing import Any

from app.errors import MEDIA_TYPE
from rl_onoff.schemas import Problem

# Given as a schema: FastAPI would document a model as application/json.
_CONTENT = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}


def _documented(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": text, "content": _CONTENT} for status, text in statuses}


PROBLEMS = _documented(
    (400, "Not JSON, or JSON no request can be made of"),
    (401, "No API key, or an unknown one, where the service has keys"),
    (404, "No such model"),
    (408, "The body did not arrive in time"),
    (413, "The body is too large"),
    (415, "Not JSON by its content type, or compressed"),
    (422, "A field is wrong: which, and why"),
    (431, "The headers are too large"),
    (429, "Too much of this client is waiting already (Retry-After)"),
    (500, "The service failed"),
    (503, "The worker is starting, was lost, or the service is shutting down (Retry-After)"),
    (504, "The request's time is over (X-Request-Timeout)"),
)
NOT_ACCEPTABLE = _documented((406, "Whole rows exist only as tensors"))
