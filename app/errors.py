"""Every failure as a problem (RFC 9457): the exception handlers, and what FastAPI's own errors become."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from app import openai_errors as openai
from app.record import current
from rl_onoff.errors import (
    InternalError,
    InvalidField,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    OnOffError,
)
from rl_onoff.findings import describe

MEDIA_TYPE = "application/problem+json"


def problem(error: OnOffError, scope: Scope, **extensions: Any) -> dict[str, Any]:
    """The members of the problem body for this request, whose error it is from now on."""
    current().error = error.slug
    return {
        **error.problem(),
        "instance": scope["path"],
        "request_id": scope.get("state", {}).get("request_id"),
        **extensions,
    }


class ProblemResponse(Response):
    """The error as a problem; under /v1 in OpenAI's shape, with the statuses its clients know."""

    media_type = MEDIA_TYPE

    def __init__(self, error: OnOffError, scope: Scope, headers: Mapping[str, str] | None = None) -> None:
        content, status, media_type = problem(error, scope), error.status, MEDIA_TYPE
        if openai.speaks(scope["path"]):
            content, status, media_type = openai.error_body(content), openai.status(error.status), "application/json"
        # ASCII, so that no text from a request can fail to encode.
        super().__init__(json.dumps(content), status_code=status, headers=headers, media_type=media_type)
        if error.status == 401:
            MutableHeaders(raw=self.raw_headers)["WWW-Authenticate"] = "Bearer"
        if error.status in (429, 503):
            MutableHeaders(raw=self.raw_headers)["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))


def install(app: FastAPI) -> None:
    for kind in (OnOffError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    match error:
        case OnOffError():
            return ProblemResponse(error, request.scope)
        case RequestValidationError():
            return ProblemResponse(invalid_field(error.errors(), error.body), request.scope)
        case HTTPException():
            return ProblemResponse(_of_http(error), request.scope, error.headers)
    raise error


def _of_http(error: HTTPException) -> OnOffError:
    match error.status_code:
        case 404:
            return NotFound("there is nothing here; /docs lists what there is")
        case 405:
            return MethodNotAllowed(f"this route takes {(error.headers or {}).get('Allow', 'other methods')}")
        case status if status < 500:
            return MalformedRequest("the request could not be read")
    return InternalError("the service failed on this request")


def invalid_field(findings: Sequence[Mapping[str, Any]], body: Any) -> InvalidField:
    """Pydantic's findings without the values that caused them."""
    if findings[0]["loc"][:1] != ("body",):  # of the address
        body = {step: None for finding in findings for step in finding["loc"][1:2]}
    errors = describe([{**finding, "loc": finding["loc"][1:]} for finding in findings], body)  # less "body"
    name = errors[0]["field"]
    # A field that may be several things has a finding for each of them.
    says = " or ".join(error["message"] for error in errors if error["field"] == name)
    return InvalidField(f"{name}: {says}" if name else says, errors=errors)
