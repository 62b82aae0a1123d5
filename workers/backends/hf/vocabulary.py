"""The vocabulary two tokenizers share, or why they share none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl_onoff.errors import PairMismatch, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Shared:
    """`size`: ids from 0 up to it mean the same to both. `warnings`: what was cut to get there."""

    size: int
    warnings: list[str]


def shared(a: Any, b: Any, allow_extra: bool) -> Shared:
    """Compare two tokenizers id by id.

    Raises PairMismatch at the first id that stands for different pieces, or that one of them lacks. With `allow_extra`
    ids from the first lacking one on are cut from both instead. An id neither has is a hole both keep.
    """
    pieces_a, pieces_b = ({i: piece for piece, i in t.get_vocab().items()} for t in (a, b))
    ids = sorted(pieces_a.keys() | pieces_b.keys())
    for i in ids:
        in_a, in_b = pieces_a.get(i), pieces_b.get(i)
        if in_a == in_b:
            continue
        if in_a is not None and in_b is not None:
            raise PairMismatch(f"the tokenizers differ: id {i} is {in_a!r} in A and {in_b!r} in B")
        lacking, piece = ("A", in_b) if in_a is None else ("B", in_a)
        found = f"the tokenizers differ: {lacking} has no id {i}, which is {piece!r} in the other"
        if not allow_extra:
            raise PairMismatch(f"{found}. options: {{allow_extra_tokens: true}} cuts it and all after it from both")
        return Shared(i, [f"{found}: ids from {i} on are cut"])
    return Shared(ids[-1] + 1, [])


def kept_eos(name: str, ids: list[int], size: int) -> list[int]:
    """The end-of-sequence ids that lie within the shared vocabulary. Raises PairMismatch if that leaves none."""
    kept = [i for i in ids if i < size]
    if ids and not kept:
        raise PairMismatch(f"model {name} ends with id {ids[0]}, which the shared vocabulary of {size} ids lacks")
    return kept


def tokenizer_json(tokenizer: Any, name: str) -> str:
    """The tokenizer as a `tokenizer.json` document."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(f"model {name} has no fast tokenizer (tokenizer.json)")
    text: str = backend.to_str()
    return text
