"""What the client sends and how it reads an answer: everything of it that needs no connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import randbits
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rl_onoff.errors import InvalidField, ServiceError
from rl_onoff.fields import ItemLike, SamplingFields
from rl_onoff.findings import describe, message
from rl_onoff.policy import Policy
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
#: What survives JSON in every language.
_SEED_BITS = 53

ResponseT = TypeVar("ResponseT", bound=Response)
RequestT = TypeVar("RequestT", bound=Request)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange to be made."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes | None = None
    accept: str = JSON
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """What the body is and which answer is wanted."""
        kinds = {"Accept": self.accept} | ({} if self.body is None else {"Content-Type": JSON})
        return {**kinds, **self.more_headers}

    def after(self, event_id: str | None, request_id: str | None) -> Call:
        """The same call, for the events that follow the one of this id."""
        known = {"Last-Event-ID": event_id, "X-Request-Id": request_id}
        return replace(self, more_headers={name: value for name, value in known.items() if value})


def get(path: str) -> Call:
    """A question without a body."""
    return Call("GET", path)


def generate(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> Call:
    """`POST /generate`."""
    return _post("/generate", _build(GenerateRequest, _prompted(prompt, fields, stream=stream)), stream=stream)


def switch_generate(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> Call:
    """`POST /switch-generate`."""
    values = _prompted(prompt, fields, stream=stream)
    if isinstance(policy := values.get("policy"), Policy):
        # `kind` has a default in Python but is what tells policies apart in JSON.
        values["policy"] = {"kind": policy.kind, **policy.model_dump(exclude_unset=True)}
    request = _build(SwitchRequest, values)
    if stream and request.sampling.seed is None:  # a text can be written again, from anywhere, if its seed is known
        seeded = request.sampling.model_copy(update={"seed": randbits(_SEED_BITS)})
        request = request.model_copy(update={"sampling": seeded})
    return _post("/switch-generate", request, stream=stream)


def distributions(items: Sequence[ItemLike], fields: Mapping[str, Any], *, full: bool, saved: bool) -> Call:
    """`POST /distributions`. `saved`: the answer is to be written to a file, which JSON never is."""
    if saved and not full:
        raise InvalidField("save_to needs full=True: only binary answers are saved", field="save_to")
    request = _build(DistributionsRequest, _scored(items, fields))
    return Call("POST", "/distributions", _body(request), SAFETENSORS if full else JSON)


def divergence(items: Sequence[ItemLike], fields: Mapping[str, Any]) -> Call:
    """`POST /divergence`."""
    return _post("/divergence", _build(DivergenceRequest, _scored(items, fields)))


def parse(cls: type[ResponseT], content: bytes | str) -> ResponseT:
    """An answer or event as its model; `ServiceError` when it is something else."""
    try:
        return cls.model_validate_json(content)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(step) for step in found["loc"])
        raise ServiceError(f"the answer is no {cls.__name__}: " + _joined(where, message(found))) from error


def _post(path: str, request: Request, *, stream: bool = False) -> Call:
    return Call("POST", path, _body(request), EVENTS if stream else JSON)


def _body(request: Request) -> bytes:
    # Only what the caller gave: the defaults are the service's, and an older one knows no newer fields.
    return request.model_dump_json(exclude_unset=True).encode()


def _prompted(prompt: str | None, fields: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """The fields of a generation, with those of `Sampling` gathered under `sampling`."""
    values = dict(fields)
    direct = {name: values.pop(name) for name in SamplingFields.__annotations__ if name in values}
    sampling = values.pop("sampling", None)
    if isinstance(sampling, Sampling):
        sampling = sampling.model_dump(exclude_unset=True)
    if not isinstance(sampling, Mapping | None):
        raise InvalidField(f"must be a Sampling or its fields by name, not {_kind(sampling)}", field="sampling")
    if sampling is not None or direct:
        values["sampling"] = {**(sampling or {}), **direct}
    if prompt is not None:
        values["prompt"] = prompt
    if stream:
        values["stream"] = True
    return values


def _scored(items: Sequence[ItemLike], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request about items."""
    if isinstance(items, str | bytes | Mapping | BaseModel) or not isinstance(items, Iterable):
        raise InvalidField(f"must be a list of items, not {_kind(items)}", field="items")
    return {**fields, "items": list(items)}


def _build(cls: type[RequestT], values: dict[str, Any]) -> RequestT:
    plain = {name: _plain(value) for name, value in values.items()}
    try:
        return cls.model_validate(plain)
    except ValidationError as error:
        # Without the input: a prompt has no place in a log.
        found = describe(error.errors(include_input=False), plain)
        detail = "; ".join(_joined(each["field"], each["message"]) for each in found)
        raise InvalidField(detail, errors=found) from None


def _plain(value: Any) -> Any:
    """What JSON has a form for: arrays and their scalars by `tolist` (numpy, torch, jax, pandas), tuples as lists."""
    match value:
        case str() | int() | None | BaseModel() | bytes():
            return value
        case list() | tuple() | range():
            return [_plain(each) for each in value]
        case Mapping():
            return {name: _plain(each) for name, each in value.items()}
    tolist = getattr(value, "tolist", None)
    return _plain(tolist()) if callable(tolist) and not isinstance(value, type) else value


def _joined(field: str, reason: str) -> str:
    return f"{field}: {reason}" if field else reason


def _kind(value: object) -> str:
    return type(value).__name__
