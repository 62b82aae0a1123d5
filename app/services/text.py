"""Text to token ids and back: the only place where a pair's tokenizer is used."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from functools import cached_property

from tokenizers import Tokenizer

from app.services import chat
from app.services.detokenize import TextStream, anchor_of
from rl_onoff.errors import ContextExceeded, InvalidField, LimitExceeded
from rl_onoff.schemas import Message
from workers.wire import PairInfo, Side

_REPLACEMENT = "\ufffd"
#: Shorter texts take less than a thread's start; longer ones go to one (the tokenizer releases the GIL).
_INLINE_CHARS = 1024


class Codec:
    """A loaded pair's tokenizer and chat templates."""

    def __init__(self, info: PairInfo, max_chars: int) -> None:
        self.vocab_size = info.a.vocab_size
        self.max_len = min(info.a.max_len, info.b.max_len)
        self._tokenizer: Tokenizer = Tokenizer.from_str(info.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._templates: dict[Side, str | None] = {"a": info.a.chat_template, "b": info.b.chat_template}
        self._special_tokens = info.special_tokens
        self._pieces: dict[int, tuple[str, bool]] = {}
        # Some tokenizers take the space off the front of what they decode: pieces are decoded behind another token.
        self._anchor = anchor_of(self._tokenizer)
        # No text within the context has more characters than the longest piece of the vocabulary at every position.
        longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._max_chars = min(max_chars, longest * self.max_len)

    async def prompt(self, text: str, field: str) -> list[int]:
        """With the special tokens the tokenizer puts around a text of its own (such as a BOS)."""
        return await self._encode(text, field, special=True)

    async def solution(self, text: str, field: str) -> list[int]:
        return await self._encode(text, field, special=False)

    async def chat(self, messages: Sequence[Message], side: Side, field: str) -> list[int]:
        """The prompt one model's own template makes of the messages."""
        template = self._templates[side]
        if template is None:
            raise InvalidField("this model has no chat template: send `prompt` instead", field=field)
        plain = [{"role": message.role, "content": message.content} for message in messages]
        text = chat.render(template, plain, self._special_tokens, field)
        return await self._encode(text, field, special=False)

    def template_side(self, preferred: Side) -> Side:
        """Whose chat template a prompt for both models is rendered with: a base model often has none."""
        other: Side = "b" if preferred == "a" else "a"
        return other if self._templates[preferred] is None and self._templates[other] is not None else preferred

    def ids(self, ids: list[int], field: str) -> list[int]:
        """The ids, if every one of them is in the vocabulary."""
        if max(ids) >= self.vocab_size:
            index, wrong = next((i, token) for i, token in enumerate(ids) if token >= self.vocab_size)
            raise InvalidField(
                f"{wrong} is outside the vocabulary of {self.vocab_size} tokens", field=f"{field}.{index}"
            )
        return ids

    def fits(self, prompt: int, more: int, field: str, what: str) -> None:
        """Raises ContextExceeded unless `prompt` + `more` tokens fit the smaller context of the pair."""
        if prompt + more > self.max_len:
            raise ContextExceeded(
                f"{prompt} prompt tokens + {more} {what} = {prompt + more} exceed the context of {self.max_len} tokens",
                field=field,
                limit=self.max_len,
                actual=prompt + more,
            )

    def piece(self, token_id: int) -> str:
        """One id as text, in the midst of one; its vocabulary entry where it has none (a part of a character)."""
        return self._piece(token_id)[0]

    def is_text(self, token_id: int) -> bool:
        """Whether the id's piece is its text: that of a part of a character is not."""
        return self._piece(token_id)[1]

    def _piece(self, token_id: int) -> tuple[str, bool]:
        known = self._pieces.get(token_id)
        if known is None:
            before = self._tokenizer.decode(self._anchor, skip_special_tokens=False)
            text = self._tokenizer.decode([*self._anchor, token_id], skip_special_tokens=False)[len(before) :]
            known = (text, True)
            if not text or _REPLACEMENT in text:
                known = (self._tokenizer.id_to_token(token_id) or "", False)
            self._pieces[token_id] = known
        return known

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.piece(token_id) for token_id in ids]

    def stream(self, *, ends: Collection[int], stop: Sequence[str] | str | None) -> TextStream:
        """For a generation that ends with one of the tokens `ends`, or at a stop string."""
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        return TextStream(self._tokenizer, after=self._anchor, silent=self._special_ids | frozenset(ends), stop=stops)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def template(self, side: Side) -> str | None:
        return self._templates[side]

    @property
    def special_tokens(self) -> dict[str, str]:
        return dict(self._special_tokens)

    async def _encode(self, text: str, field: str, *, special: bool) -> list[int]:
        ids = await self.encode(text, field, special=special)
        if not ids:
            raise InvalidField("holds no tokens", field=field)
        return ids

    async def encode(self, text: str, field: str, *, special: bool) -> list[int]:
        """The ids of a text, of which there may be none; `special` puts the tokenizer's own around it."""
        if len(text) > self._max_chars:
            raise LimitExceeded(
                f"{len(text)} characters exceed the limit of {self._max_chars}",
                field=field,
                limit=self._max_chars,
                actual=len(text),
            )
        if len(text) <= _INLINE_CHARS:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
            await asyncio.sleep(0)  # a thousand short texts in a row would hold up the streams
        else:
            ids = await asyncio.to_thread(self._long, text, special)
        return self.ids(ids, field) if ids else []

    def _long(self, text: str, special: bool) -> list[int]:
        # In batches alone the library lets other threads run: `encode` holds all of them up, for seconds.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids
