"""Metrics by name: the built-in ones and those an installation adds.

A metric of your own is a function of a text and its reference, made known by the decorator in the running process, or
by an entry point that the service and the CLI find when the name is first asked for:

    @metric("shouting", needs_reference=False)
    def shouting(text: str, reference: str | None) -> float:
        return sum(map(str.isupper, text)) / max(1, len(text))

    [project.entry-points."rl_onoff.metrics"]
    shouting = "my_package:shouting"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Final

from rl_onoff.errors import ConfigurationError, InvalidField

ENTRY_POINTS: Final = "rl_onoff.metrics"
#: Computed by the service from the model's own log-probabilities, not from text.
MODEL_METRICS: Final = ("perplexity",)

Score = Callable[[str, str | None], float]


def _one(value: float) -> list[float]:
    return [value, 1.0]


def _mean(sums: Sequence[float]) -> float:
    return sums[0] / sums[1]


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of one text, and how the scores of many become one.

    `score(text, reference)` is a finite number. A corpus value that is no mean (BLEU) has sufficient `statistics` of
    one text, which add up over texts, and `combine`, which makes the value of their sums. `binary`: the score is 0
    or 1, and pass@k and majority votes make sense; `answer` is then what of a text is compared. `pairwise`: each word
    is compared with each of the reference, which takes time and memory in proportion.
    """

    name: str
    score: Score
    needs_reference: bool = True
    binary: bool = False
    answer: Callable[[str], str | None] | None = None
    statistics: Callable[[str, str | None], Sequence[float]] | None = None
    combine: Callable[[Sequence[float]], float] = field(default=_mean)
    pairwise: bool = False

    def sums(self, text: str, reference: str | None) -> Sequence[float]:
        """What of this text adds up to a corpus value."""
        return _one(self.score(text, reference)) if self.statistics is None else self.statistics(text, reference)

    def checked(self, text: str, reference: str | None) -> float:
        """The score. Raises ConfigurationError where a metric of somebody's own fails or gives no finite number."""
        try:
            value = float(self.score(text, reference))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(f"the metric {self.name} failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise ConfigurationError(f"the metric {self.name} gave {value}")
        return value


#: Makes the metric of a family's parameter ("number" of `exact_match:number`; None without). May raise ValueError.
Family = Callable[[str | None], Metric]

_registered: dict[str, Metric] = {}


def metric(
    name: str, *, needs_reference: bool = True, binary: bool = False, answer: Callable[[str], str | None] | None = None
) -> Callable[[Score], Metric]:
    """Make a function of (text, reference) a metric of this process. Raises ValueError when the name is taken."""

    def decorate(score: Score) -> Metric:
        return register(Metric(name, score, needs_reference=needs_reference, binary=binary, answer=answer))

    return decorate


def register(new: Metric) -> Metric:
    """Make a metric known in this process. Raises ValueError when its name is another's, or no name."""
    taken = new.name in _families() or new.name in MODEL_METRICS or _registered.get(new.name, new) is not new
    if taken:
        raise ValueError(f"there is a metric {new.name!r} already")
    if not new.name or ":" in new.name:
        raise ValueError("the name of a metric has at least one character, and no colon")
    _registered[new.name] = new
    return new


def names() -> list[str]:
    """Every metric of texts there is, without importing any of them."""
    built_in = list(_families())
    return [*built_in, *sorted({*_registered, *entry_points(group=ENTRY_POINTS).names} - {*built_in})]


def find(name: str) -> Metric:
    """The metric of this name. Raises InvalidField, or MissingDependency with the command that installs its library."""
    family, colon, parameter = name.partition(":")
    if name in MODEL_METRICS:
        raise InvalidField(
            f"{name} does not apply here: it is of what one model wrote, by its own log-probabilities, and not of a "
            "text; sample and /generate have it",
            field="metrics",
        )
    if colon and not parameter:
        raise InvalidField(f"{name}: the parameter after the colon is empty", field="metrics")
    if make := _families().get(family):
        try:
            return make(parameter or None)
        except ValueError as error:
            raise InvalidField(str(error), field="metrics") from None
    found = _registered.get(name) or _loaded(name)
    if found is None:
        known = [*names(), *MODEL_METRICS]
        close = get_close_matches(family, known, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise InvalidField(f"there is no such metric; there are {', '.join(known)}{hint}", field="metrics")
    return found


def _families() -> dict[str, Family]:
    # Imported here: its modules import this one.
    from rl_onoff.metrics import libraries, text

    return text.FAMILIES | libraries.FAMILIES


def _loaded(name: str) -> Metric | None:
    for point in entry_points(group=ENTRY_POINTS, name=name):
        _load(point.value, name, point.load)
    return _registered.get(name)


def _load(where: str, name: str, load: Callable[[], Any]) -> None:
    # Anyone's code runs here: whatever is wrong with it is for the operator to know, with the place to look at.
    try:
        found = load()
        if not (isinstance(found, Metric) and found.name == name):
            raise TypeError("it is no Metric of that name")
        register(found)
    except Exception as error:
        raise ConfigurationError(f"the metric {name!r} of {where} cannot be used: {error}") from error
