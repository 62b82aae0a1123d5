"""Metrics that need nothing but the text: exact match with normalisers, length, repetition."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Final

from rl_onoff.metrics.registry import Family, Metric

Normaliser = Callable[[str], str | None]

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _strip(text: str) -> str:
    return text.strip()


def _words(text: str) -> str:
    """SQuAD's: lower case, no punctuation, no articles, single spaces (Rajpurkar et al., EMNLP 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _number(text: str) -> str | None:
    """The last number, without thousands separators and trailing zeros: the usual rule for GSM8K."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "").removeprefix("+")
    return number.rstrip("0").rstrip(".") or "0" if "." in number else number


def _boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced: the rule for MATH."""
    _, mark, rest = text.rpartition(r"\boxed{")
    if not mark:
        return None
    depth = 1
    for index, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:index].strip()
    return None


NORMALISERS: Final[Mapping[str, Normaliser]] = {"strip": _strip, "words": _words, "number": _number, "boxed": _boxed}


def normaliser(name: str | None) -> Normaliser:
    """By name, or `after=MARK`: what follows the last MARK. Gives None for a text without an answer."""
    if name is None:
        return _strip
    if name.startswith("after=") and len(name) > len("after="):
        mark = name.removeprefix("after=")
        return lambda text: text.rpartition(mark)[2].strip() if mark in text else None
    if name not in NORMALISERS:
        raise ValueError(f"exact_match:{name}: the normaliser is one of {', '.join(NORMALISERS)}, after=MARK")
    return NORMALISERS[name]


def _exact_match(parameter: str | None) -> Metric:
    """1 where the normalised text equals the normalised reference; a reference without a mark counts as it is."""
    normalise = normaliser(parameter)

    def score(text: str, reference: str | None) -> float:
        answer = normalise(text)
        expected = normalise(reference or "")
        return float(answer is not None and answer == (_strip(reference or "") if expected is None else expected))

    name = "exact_match" if parameter is None else f"exact_match:{parameter}"
    return Metric(name, score, binary=True, answer=normalise)


def _length(parameter: str | None) -> Metric:
    _no_parameter("length", parameter)
    return Metric("length", lambda text, _: float(len(text)), needs_reference=False)


def _repetition(parameter: str | None) -> Metric:
    """1 - distinct/all of the word n-grams, n = 4 unless given: 0 where nothing is said twice.

    rep-n of Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020, over words.
    """
    if parameter is not None and not (parameter.isdecimal() and 1 <= int(parameter) <= 100):
        raise ValueError("repetition:n needs an n from 1 to 100")
    n = int(parameter or 4)

    def score(text: str, _: str | None) -> float:
        words = text.split()
        grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

    return Metric("repetition" if parameter is None else f"repetition:{n}", score, needs_reference=False)


def _no_parameter(name: str, parameter: str | None) -> None:
    if parameter is not None:
        raise ValueError(f"{name} takes no parameter")


FAMILIES: Final[dict[str, Family]] = {"exact_match": _exact_match, "length": _length, "repetition": _repetition}
