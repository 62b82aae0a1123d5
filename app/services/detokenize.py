"""Token ids back to text, one token at a time.

A token's piece is given out once nothing that follows can change it: text that ends inside a UTF-8 character, or in
what may become a stop string, is held back together with its tokens. So the pieces of all tokens, joined, are the
final text, whether it is streamed or not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
#: A character is at most four bytes long: a window that still ends in U+FFFD after so many tokens really holds one.
_MAX_WINDOW = 64


def anchor_of(tokenizer: Tokenizer) -> list[int]:
    """An id behind which others can be decoded as they are in the midst of a text; none if there is no such id."""
    for token_id in range(tokenizer.get_vocab_size()):
        text: str = tokenizer.decode([token_id], skip_special_tokens=False)
        if text.isascii() and text.isalnum() and token_id not in tokenizer.get_added_tokens_decoder():
            return [token_id]
    return []


class _Decoder:
    """Text as it becomes certain. Decodes a window that starts one chunk back, for tokenizers that look left."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(after)
        self._known = len(after)  # ids of the window whose text was given out
        self._known_text = self._decode(after)

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        waiting = text.endswith(_REPLACEMENT) and len(self._window) - self._known < _MAX_WINDOW
        if waiting or len(text) <= len(self._known_text):
            return ""
        new = text[len(self._known_text) :]
        del self._window[: self._known]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return new

    @property
    def waiting(self) -> bool:
        """Whether ids were pushed whose text is not certain yet."""
        return len(self._window) > self._known

    def flush(self) -> str:
        return self._decode(self._window)[len(self._known_text) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


@dataclass(slots=True)
class Piece:
    """One token's share of the text."""

    index: int
    id: int
    text: str


@dataclass(slots=True)
class _Held:
    index: int
    id: int
    begin: int


class TextStream:
    """Tokens in, pieces out; `stopped` once a stop string is complete, after which no token may follow."""

    def __init__(
        self, tokenizer: Tokenizer, *, silent: Collection[int], stop: Sequence[str] = (), after: Sequence[int] = ()
    ) -> None:
        """`silent` ids have no text: special tokens, and the end-of-sequence token that ends a generation.

        The text goes on behind the ids `after`.
        """
        self._decoder = _Decoder(tokenizer, after)
        self._silent = silent
        self._stop = stop
        self._reach = max(map(len, stop), default=1) - 1
        self._held: list[_Held] = []
        self._held_text = ""  # the text from the first held token on
        self._offset = 0  # where `_held_text` begins in the whole text
        self._count = 0
        self.stopped = False

    def push(self, token_id: int) -> list[Piece]:
        """The pieces that became certain with this token, in order."""
        self._held.append(_Held(self._count, token_id, self._offset + len(self._held_text)))
        self._count += 1
        new = "" if token_id in self._silent else self._decoder.push(token_id)
        if new:
            return self._append(new)
        if len(self._held) == 1 and not self._decoder.waiting:
            return self._release(1, self._offset)
        return []  # it may be the last token, which gets what is left of the text: it waits with the others

    def finish(self) -> list[Piece]:
        """The held pieces, when no token follows; what is left of the text belongs to the last."""
        if self.stopped or not self._held:
            return []
        rest = self._decoder.flush()
        pieces = self._append(rest) if rest else []
        if self.stopped:
            return pieces
        return pieces + self._release(len(self._held), self._offset + len(self._held_text))

    def _append(self, new: str) -> list[Piece]:
        searched = max(0, len(self._held_text) - self._reach)
        self._held_text += new
        found = [at for stop in self._stop if (at := self._held_text.find(stop, searched)) >= 0]
        if found:
            self.stopped = True
            return self._release(len(self._held), self._offset + min(found))
        certain = self._offset + len(self._held_text) - self._possible_stop()
        ready = sum(1 for end in self._ends() if end <= certain)
        return self._release(ready, certain)

    def _ends(self) -> list[int]:
        """Where each held token's text ends: they ascend."""
        return [held.begin for held in self._held[1:]] + [self._offset + len(self._held_text)]

    def _possible_stop(self) -> int:
        """The length of the longest end of the text that may grow into a stop string."""
        text = self._held_text
        for length in range(min(self._reach, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _release(self, count: int, certain: int) -> list[Piece]:
        """The first `count` held tokens, their text cut at `certain`."""
        ends = self._ends()[:count]
        pieces = []
        for held, end in zip(self._held, ends, strict=False):
            text = self._held_text[held.begin - self._offset : max(0, min(end, certain) - self._offset)]
            pieces.append(Piece(held.index, held.id, text))
        del self._held[:count]
        if ends:
            self._held_text = self._held_text[ends[-1] - self._offset :]
            self._offset = ends[-1]
        return pieces
