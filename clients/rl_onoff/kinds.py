"""Policies by their kind: the built-in ones and those an installation adds.

A policy of your own is a subclass of `Policy` (or `ThresholdPolicy`) with a `kind` no other has. It is made known by an
entry point named after its kind, which the service and its workers find when the kind is first asked for,

    [project.entry-points."rl_onoff.policies"]
    my_kind = "my_package:MyPolicy"

or to the running process alone by the `register` decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import core_schema

from rl_onoff.errors import ConfigurationError, InvalidField
from rl_onoff.policy import (
    AlwaysA,
    AlwaysB,
    DeltaLogpPolicy,
    DivergencePolicy,
    EntropyPolicy,
    Policy,
    RandomPolicy,
    RankPolicy,
    SchedulePolicy,
    TargetFloorPolicy,
    TopProbPolicy,
    TypicalPolicy,
)

ENTRY_POINTS: Final = "rl_onoff.policies"

_BuiltIn = Annotated[
    DivergencePolicy
    | DeltaLogpPolicy
    | EntropyPolicy
    | TopProbPolicy
    | RankPolicy
    | TargetFloorPolicy
    | TypicalPolicy
    | RandomPolicy
    | SchedulePolicy
    | AlwaysA
    | AlwaysB,
    Field(discriminator="kind"),
]

P = TypeVar("P", bound=Policy)


def _kind(cls: type[Policy]) -> str:
    match get_args(cls.model_fields["kind"].annotation):
        case (str(kind),):
            return kind
    raise TypeError(f"{cls.__name__}.kind must be annotated as a Literal of one name")


BUILT_IN: Final[Mapping[str, type[Policy]]] = {_kind(cls): cls for cls in get_args(get_args(_BuiltIn)[0])}
_registered: dict[str, type[Policy]] = {}


def register(cls: type[P]) -> type[P]:
    """Make a policy known by its kind in this process. Raises ValueError when the kind is another policy's."""
    kind = _kind(cls)
    if kind in BUILT_IN or _registered.get(kind, cls) is not cls:
        raise ValueError(f"there is a policy of kind {kind!r} already")
    _registered[kind] = cls
    return cls


def kinds() -> list[str]:
    """Every kind of policy there is, without importing any of them."""
    return [*BUILT_IN, *sorted({*_registered, *entry_points(group=ENTRY_POINTS).names} - {*BUILT_IN})]


def _find(kind: str) -> type[Policy] | None:
    """The registered policy of this kind, its entry point imported at first use."""
    if kind not in _registered:
        for point in entry_points(group=ENTRY_POINTS, name=kind):
            _load(point.value, kind, point.load)
    return _registered.get(kind)


def _load(where: str, kind: str, load: Callable[[], Any]) -> None:
    # Anyone's code runs here: whatever is wrong with it is for the operator to know, with the place to look at.
    try:
        cls = load()
        if not (isinstance(cls, type) and issubclass(cls, Policy) and _kind(cls) == kind):
            raise TypeError("it is no Policy of that kind")
        register(cls)
    except Exception as error:
        raise ConfigurationError(f"the policy {kind!r} of {where} cannot be used: {error}") from error


class _ByKind:
    """Pydantic's view of a policy field: the built-in kinds as a discriminated union, and whatever is registered."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._validate, handler.generate_schema(_BuiltIn), serialization=core_schema.simple_ser_schema("any")
        )

    @staticmethod
    def _validate(value: Any, built_in: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, Policy):
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind in BUILT_IN:
            return built_in(value)
        if cls := _find(kind):
            return cls.model_validate(value)
        raise ValueError(_unknown(kind))


def _unknown(kind: str) -> str:
    known = kinds()
    close = get_close_matches(kind, known, n=1)
    hint = f". Did you mean '{close[0]}'?" if close else ""
    return f"kind must be one of {', '.join(repr(name) for name in known)}{hint}"


#: A policy of any kind, as a field.
AnyPolicy = Annotated[Policy, _ByKind()]

_adapter: TypeAdapter[Policy] = TypeAdapter(AnyPolicy)


def parse_policy(value: Mapping[str, Any]) -> Policy:
    """The policy of this JSON form. Raises InvalidField."""
    try:
        return _adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidField(error.errors()[0]["msg"].removeprefix("Value error, "), field="policy") from error
