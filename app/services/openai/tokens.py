"""Tokens as OpenAI's log-probabilities name them: by their text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from app.services.generation import Generation
from app.services.openai.answers import CompletionLogprobs, TokenLogprob, TopLogprob
from app.services.openai.loglikelihood import Best, at_least
from app.services.openai.running import Choice
from app.services.text import Codec


def prompt_logprobs(codec: Codec, choice: Choice) -> CompletionLogprobs:
    """Of an echoed prompt: its first token has none, for nothing precedes it."""
    prompt, scored = choice.prompt, choice.scored
    pieces = codec.pieces(prompt.ids)
    tops: list[dict[str, float] | None] = [None]
    logprobs: list[float | None] = [None]
    if scored is not None:
        logprobs += [at_least(value) for value in scored.logprobs]
        own = zip(prompt.ids[1:], scored.logprobs, scored.best, strict=True)
        tops += [_by_text(codec, token_id, value, best) for token_id, value, best in own]
    offsets = _offsets(pieces, prompt.text)
    return CompletionLogprobs(tokens=pieces, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets)


def completion_logprobs(codec: Codec, choice: Choice, begin: int, first: int, last: int) -> CompletionLogprobs:
    """Of the generated tokens `first`..`last` - 1, where the whole completion's text begins at `begin`."""
    generation = choice.generation
    if generation is None:
        return CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    ids = generation.token_ids[first:last]
    logprobs = generation.logprobs[first:last]
    starts = [0, *accumulate(choice.lengths)]
    own = zip(ids, logprobs, range(first, last), strict=True)
    return CompletionLogprobs(
        tokens=codec.pieces(ids),
        token_logprobs=[at_least(value) for value in logprobs],
        top_logprobs=[_by_text(codec, token_id, value, _best(generation, i)) for token_id, value, i in own],
        text_offset=[begin + start for start in starts[first:last]],
    )


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def chat_logprobs(codec: Codec, generation: Generation, first: int, last: int) -> list[TokenLogprob]:
    """Of the generated tokens `first`..`last` - 1."""
    return [
        TokenLogprob(
            **_named(codec, generation.token_ids[i], generation.logprobs[i]).model_dump(),
            top_logprobs=[_named(codec, token_id, value) for token_id, value in _best(generation, i)],
        )
        for i in range(first, last)
    ]


def _named(codec: Codec, token_id: int, logprob: float) -> TopLogprob:
    text = codec.piece(token_id)
    # A part of a character has no bytes of its own here.
    own = list(text.encode()) if codec.is_text(token_id) else None
    return TopLogprob(token=text, logprob=at_least(logprob), bytes=own)


def _best(generation: Generation, index: int) -> Best:
    top = generation.top[index]
    return [(i, -math.inf if value is None else value) for i, value in zip(top.ids, top.values, strict=True)]


def _by_text(codec: Codec, token_id: int, logprob: float, best: Best) -> dict[str, float]:
    """The token and the most likely ones. Of tokens with the same text the likeliest is named."""
    found: dict[str, float] = {}
    for each, value in [*best, (token_id, logprob)]:
        text = codec.piece(each)
        found[text] = max(at_least(value), found.get(text, -math.inf))
    return found


def _offsets(pieces: Sequence[str], text: str) -> list[int]:
    """Where each piece begins in the text; what is not in it (a BOS, part of a character), where the last one ended."""
    offsets, at, missed = [], 0, 1
    for piece in pieces:
        if at == 0 and piece[:1] == " " and text.startswith(piece[1:]) and not text.startswith(piece):
            piece = piece[1:]  # the tokenizer put a space before the text
        found = text.find(piece, at, at + missed + len(piece))
        offsets.append(at if found < 0 else found)
        at, missed = (at, missed + 1) if found < 0 else (found + len(piece), 1)
    return offsets
