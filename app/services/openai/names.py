"""Model names of the OpenAI routes: a model, a pair under a configured policy, or a rule in the name itself.

base                          a model of a pair, alone
A-demo, B-demo                a model by the pair it belongs to, where no model is called so
demo                          a pair: switched by the default policy, or by the request's `policy`
careful                       a policy the configuration names (`policies` of a pair)
switch                        the only pair, as by its own name
switch:js>0.1                 a rule: B leads while the signal is beyond the threshold
switch:js>0.1;off=0.05;dwell=4;max_b=0.2;start=b;pair=demo
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from app.services.registry import Registry, ServedModel, ServedPair
from rl_onoff.errors import InvalidField, UnknownModel, WorkerUnavailable
from rl_onoff.kinds import parse_policy
from rl_onoff.policy import DivergencePolicy, Policy

_PREFIX: Final = "switch"
#: Signals compared from above and from below, and the policies they stand for; others are measures of divergence.
_ABOVE: Final = {"entropy": "entropy", "delta_logp": "delta_logp", "rank": "rank"}
_BELOW: Final = {"top_prob": "top_prob", "target_floor": "target_floor", "typical": "typical"}
_OPTIONS: Final = {"off": "off", "dwell": "min_dwell", "max_b": "max_b_fraction", "start": "start"}
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Switched:
    """A pair that writes as one model."""

    served: ServedPair
    policy: Policy


Target = ServedModel | Switched


@dataclass(frozen=True, slots=True)
class _Rule:
    policy: Policy | None
    pair: str | None


async def resolve(name: str, policy: Policy | None, registry: Registry, wait_seconds: float) -> Target:
    """What the name stands for, once its worker answers: many clients give up on the first refusals.

    Raises UnknownModel, InvalidField, or WorkerUnavailable when no worker answers within `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return _find(name, policy, registry)
        except WorkerUnavailable:
            if time.monotonic() >= deadline or registry.failed:
                raise
            await asyncio.sleep(_POLL_SECONDS)


def _find(name: str, policy: Policy | None, registry: Registry) -> Target:
    model = name if registry.has_model(name) else _by_pair(name, registry)
    if model is not None:
        if policy is not None:
            raise InvalidField(f"{name} is one model: a policy needs a pair, such as `switch`", field="policy")
        return registry.model(model)
    own, pair = _named(name, registry)
    if own is not None and policy is not None:
        raise InvalidField("the model's name holds a policy already: name the pair alone", field="policy")
    return Switched(registry.pair_called(pair), policy or own or DivergencePolicy())


def _by_pair(name: str, registry: Registry) -> str | None:
    """The model that A-PAIR or B-PAIR means, unless a pair or a policy has that name itself."""
    taken = {*registry.pair_names, *(policy for policies in registry.policies.values() for policy in policies)}
    side, _, pair = name.partition("-")
    models = registry.models_of(pair)
    if side not in ("A", "B") or models is None or name in taken:
        return None
    return models[side == "B"]


def _named(name: str, registry: Registry) -> tuple[Policy | None, str]:
    """The policy a name stands for, if it has one, and its pair."""
    if name in registry.pair_names:
        return None, name
    for pair, policies in registry.policies.items():
        if name in policies:
            return policies[name], pair
    if name != _PREFIX and not name.startswith((f"{_PREFIX}:", f"{_PREFIX};")):
        known = [card["id"] for card in cards(registry)]
        raise UnknownModel(
            f"no such model; there are {', '.join(known)}, A- or B- before a pair's name, "
            f"and {_PREFIX}:js>0.1 and its like"
        )
    rule = parse_name(name)
    pairs = registry.pair_names
    if rule.pair is not None and rule.pair not in pairs:
        raise UnknownModel(f"pair={rule.pair}: there are {', '.join(pairs)}")
    if rule.pair is None and len(pairs) > 1:
        raise UnknownModel(f"several pairs are served: add ;pair=NAME to the model's name, of {', '.join(pairs)}")
    return rule.policy, rule.pair or pairs[0]


def parse_name(name: str) -> _Rule:
    """A name that begins with `switch`. Raises UnknownModel for what is no rule, InvalidField for wrong values."""
    head, *options = name.split(";")
    rule = head.removeprefix(_PREFIX).removeprefix(":")
    fields = _rule(rule) if rule else {}
    if head == f"{_PREFIX}:":
        raise _no_rule()
    pair = None
    for option in options:
        key, _, value = option.partition("=")
        if key == "pair" and value:
            pair = value
        elif key in _OPTIONS and value and rule:
            fields[_OPTIONS[key]] = _option(key, value)
        else:
            raise _no_rule()
    if not rule:
        return _Rule(None, pair)
    try:
        return _Rule(parse_policy(fields), pair)
    except InvalidField as error:
        raise InvalidField(error.detail.removeprefix("policy: "), field="model") from error


def _rule(text: str) -> dict[str, Any]:
    for sign, kinds in ((">", _ABOVE), ("<", _BELOW), ("=", {"random": "random"})):
        signal, found, threshold = text.partition(sign)
        if not found:
            continue
        if sign == "=":
            fields: dict[str, Any] = {"kind": "random", "rate": _number(threshold)}
        else:
            fields = {"kind": kinds.get(signal), "on": _number(threshold)}
        if signal in kinds:
            return fields
        if sign == ">":
            return {"kind": "divergence", "measure": signal, "on": fields["on"]}
        raise _no_rule()
    raise _no_rule()


def _option(key: str, value: str) -> Any:
    if key == "start":
        return value
    number = _number(value)
    return int(number) if key == "dwell" and number == int(number) else number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _no_rule() from None
    if number - number != 0:  # infinite, or not a number
        raise _no_rule()
    return number


def _no_rule() -> UnknownModel:
    return UnknownModel(
        "this is no rule: write switch:SIGNAL>NUMBER with a measure such as js, or entropy, delta_logp or rank; "
        f"switch:SIGNAL<NUMBER with {', '.join(_BELOW)}; or switch:random=RATE; "
        "then, if wanted, ;off=NUMBER ;dwell=TOKENS ;max_b=SHARE ;start=b ;pair=NAME"
    )


def cards(registry: Registry) -> Iterator[dict[str, Any]]:
    """What `GET /v1/models` lists beside `object`, `created` and `owned_by`: models, pairs, named policies."""
    for card in registry.cards().models:
        yield {"id": card.name, "pair": card.pair, "side": card.side, "max_model_len": card.max_len}
    for pair in registry.cards().pairs:
        yield {"id": pair.name, "pair": pair.name, "policy": DivergencePolicy().model_dump(mode="json")}
    for name, policies in registry.policies.items():
        for policy_name, policy in policies.items():
            yield {"id": policy_name, "pair": name, "policy": policy.model_dump(mode="json")}
