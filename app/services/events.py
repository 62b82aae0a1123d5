"""What generations yield, streamed or not: the last event holds the whole result."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from app.services.json_parts import pieces
from rl_onoff.errors import InternalError, InvalidField
from rl_onoff.schemas import Response

R = TypeVar("R", bound=Response)


Kind = Literal["token", "switch", "done", "comment"]

_ID = re.compile(r"(switch-)?([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Place:
    """Between two events of a stream: before `token` and, unless the switch was `switched`, before that."""

    token: int
    switched: bool = False

    @classmethod
    def after(cls, last_event_id: str) -> Place:
        """Where a client that has the event of this id goes on. Raises InvalidField for what is none."""
        match = _ID.fullmatch(last_event_id)
        if match is None:
            raise InvalidField("is no id of an event of this stream", field="Last-Event-ID")
        position = int(match[2])
        return cls(position, switched=True) if match[1] else cls(position + 1)

    @property
    def id(self) -> str:
        """Of the event before: a token's index, or `switch-` and the index of the token that is to follow.

        With one id for both, a line that was cut between them would cost the token.
        """
        return f"switch-{self.token}" if self.switched else str(self.token - 1)


BEGINNING = Place(0)


class Sendable(Protocol):
    """One event of a stream, encoded as ASCII, since some clients break lines at U+2028 too; a `done` ends it."""

    @property
    def name(self) -> Kind: ...

    @property
    def long(self) -> bool:
        """Whether it may take long to encode, so that this is to be done in pieces."""

    def encode(self) -> bytes: ...

    def pieces(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event, or a comment, which clients pass over."""

    name: Kind
    data: Response | str
    id: int | str | None = None

    @property
    def long(self) -> bool:
        return self.name == "done"

    def encode(self) -> bytes:
        if isinstance(self.data, str):
            return f": {self.data}\n\n".encode("ascii")
        return f"{self._head}{self.data.model_dump_json(by_alias=True, ensure_ascii=True)}\n\n".encode()

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.data, str):
            yield self.encode()
            return
        yield self._head.encode()
        yield from pieces(self.data, ensure_ascii=True)
        yield b"\n\n"

    @property
    def _head(self) -> str:
        return f"event: {self.name}\n" + (f"id: {self.id}\n" if self.id is not None else "") + "data: "


async def result(events: AsyncGenerator[Event, None], kind: type[R]) -> R:
    """Run to the end; the `done` event's data."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event.data, kind):
                return event.data
    raise InternalError("the generation ended without a result")
