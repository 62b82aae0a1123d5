"""Whether two model folders form a pair: ids must mean the same in both; what else differs is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rl_onoff.cli.folders import ModelFolder

Verdict = Literal["same", "differs", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One aspect of both models. A `problem` keeps them from being a pair."""

    aspect: str
    a: str
    b: str
    verdict: Verdict
    meaning: str


def compare(a: ModelFolder, b: ModelFolder) -> list[Finding]:
    """All findings, the vocabulary's first."""
    shared = min(len(a.pieces), len(b.pieces), *(n for n in (a.columns, b.columns) if n is not None))
    return [
        _vocabulary(a.pieces, b.pieces),
        _segmentation(a.segmentation, b.segmentation),
        _plain("logit columns", a.columns, b.columns, f"divergences are over the {shared} ids both models know"),
        _plain(
            "context", a.context, b.context, f"{min(filter(None, (a.context, b.context)), default='unknown')} tokens"
        ),
        _plain("end of text", a.eos_ids, b.eos_ids, "generation ends at either model's"),
        _plain("start of text", a.bos_ids, b.bos_ids, "prompts are tokenised as A's tokenizer does"),
        _chat(a.chat_template, b.chat_template),
        _generation(a.generation, b.generation),
        _plain("architecture", a.architecture, b.architecture, "need not be the same"),
    ]


def _vocabulary(a: dict[int, str], b: dict[int, str]) -> Finding:
    sizes = f"{len(a)} tokens", f"{len(b)} tokens"
    # An id that only one model has comes after one that means two things: that can be cut, this cannot.
    clash = min((i for i in a.keys() & b.keys() if a[i] != b[i]), default=None)
    if clash is not None:
        meaning = f"id {clash} is {a[clash]!r} in A and {b[clash]!r} in B"
        return Finding("vocabulary", *sizes, "problem", meaning)
    alone = min(a.keys() ^ b.keys(), default=None)
    if alone is not None:
        lacking, piece = ("A", b[alone]) if alone in b else ("B", a[alone])
        meaning = f"{lacking} has no id {alone}, which is {piece!r} in the other"
        hint = "; the option allow_extra_tokens cuts such ids from both"
        return Finding("vocabulary", *sizes, "problem", meaning + hint)
    return Finding("vocabulary", *sizes, "same", "every id means the same in both")


def _segmentation(a: dict[str, Any], b: dict[str, Any]) -> Finding:
    parts = [name for name in a if a[name] != b[name]]
    if not parts:
        return Finding("text to tokens", "", "", "same", "both cut text alike")
    return Finding(
        "text to tokens", "", "", "differs", f"text is cut by A's tokenizer; B differs in {', '.join(parts)}"
    )


def _chat(a: str | None, b: str | None) -> Finding:
    in_a, in_b = ("none" if template is None else f"{len(template)} characters" for template in (a, b))
    if a == b:
        return Finding("chat template", in_a, in_b, "same", "messages read the same to both")
    return Finding("chat template", in_a, in_b, "differs", "prompt_mode per_model renders each model's own")


def _generation(a: dict[str, Any], b: dict[str, Any]) -> Finding:
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    in_a, in_b = (", ".join(f"{name} {side[name]}" for name in names if name in side) for side in (a, b))
    meaning = "not used: a request says how to sample"
    return Finding("generation defaults", in_a, in_b, "differs" if names else "same", meaning)


def _plain(aspect: str, a: object, b: object, meaning: str) -> Finding:
    in_a, in_b = ("unknown" if value is None else _listed(value) for value in (a, b))
    return Finding(aspect, in_a, in_b, "same" if a == b else "differs", meaning)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
