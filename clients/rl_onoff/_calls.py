"""What the client sends and how it reads an answer: everything of it that needs no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rl_onoff.errors import InvalidField, ServiceError
from rl_onoff.fields import ItemLike, SamplingFields
from rl_onoff.schemas import (
    DistributionsRequest,
    DivergenceRequest,
    GenerateRequest,
    Request,
    Response,
    Sampling,
    SwitchRequest,
)

JSON = "application/json"
EVENTS = "text/event-stream"
SAFETENSORS = "application/vnd.safetensors"

ResponseT = TypeVar("ResponseT", bound=Response)
RequestT = TypeVar("RequestT", bound=Request)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange to be made."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes | None = None
    accept: str = JSON

    @property
    def headers(self) -> dict[str, str]:
        """What the body is and which answer is wanted."""
        return {"Accept": self.accept} | ({} if self.body is None else {"Content-Type": JSON})


def get(path: str) -> Call:
    """A question without a body."""
    return Call("GET", path)


def generate(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> Call:
    """`POST /generate`."""
    return _post("/generate", _build(GenerateRequest, _prompted(prompt, fields, stream=stream)), stream=stream)


def switch_generate(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> Call:
    """`POST /switch-generate`."""
    values = _prompted(prompt, fields, stream=stream)
    if isinstance(policy := values.get("policy"), BaseModel):
        # `kind` has a default in Python but is what tells policies apart in JSON.
        values["policy"] = {"kind": policy.kind, **policy.model_dump(exclude_unset=True)}  # type: ignore[attr-defined]
    return _post("/switch-generate", _build(SwitchRequest, values), stream=stream)


def distributions(items: Sequence[ItemLike], fields: Mapping[str, Any], *, full: bool) -> Call:
    """`POST /distributions`."""
    request = _build(DistributionsRequest, {**fields, "items": list(items)})
    return Call("POST", "/distributions", _body(request), SAFETENSORS if full else JSON)


def divergence(items: Sequence[ItemLike], fields: Mapping[str, Any]) -> Call:
    """`POST /divergence`."""
    return _post("/divergence", _build(DivergenceRequest, {**fields, "items": list(items)}))


def parse(cls: type[ResponseT], content: bytes | str) -> ResponseT:
    """An answer or event as its model; `ServiceError` when it is something else."""
    try:
        return cls.model_validate_json(content)
    except ValidationError as error:
        raise ServiceError(f"the answer is no {cls.__name__}: {_message(error.errors()[0])}") from error


def _post(path: str, request: Request, *, stream: bool = False) -> Call:
    return Call("POST", path, _body(request), EVENTS if stream else JSON)


def _body(request: Request) -> bytes:
    # Only what the caller gave: the defaults are the service's, and an older one knows no newer fields.
    return request.model_dump_json(exclude_unset=True).encode()


def _prompted(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """The fields of a generation, with those of `Sampling` gathered under `sampling`."""
    values = dict(fields)
    direct = {name: values.pop(name) for name in SamplingFields.__annotations__ if name in values}
    sampling = values.get("sampling", {})
    if direct:
        given = sampling.model_dump(exclude_unset=True) if isinstance(sampling, Sampling) else sampling
        values["sampling"] = {**given, **direct}
    if prompt is not None:
        values["prompt"] = prompt
    if stream:
        values["stream"] = True
    return values


def _build(cls: type[RequestT], values: dict[str, Any]) -> RequestT:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        # Without the input: a prompt has no place in a log.
        found = [{"field": _path(each), "message": _reason(each)} for each in error.errors(include_input=False)]
        raise InvalidField("; ".join(_message(each) for each in error.errors()), errors=found) from None


def _path(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"])


def _reason(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _message(error: Any) -> str:
    return ": ".join(filter(None, (_path(error), _reason(error))))
