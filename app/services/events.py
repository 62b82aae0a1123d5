"""What generations yield, streamed or not: the last event holds the whole result."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from rl_onoff.errors import InternalError
from rl_onoff.schemas import Response

R = TypeVar("R", bound=Response)


class Sendable(Protocol):
    """One event of a stream; a `done` ends it."""

    @property
    def name(self) -> Literal["token", "switch", "done"]: ...

    def encode(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Event:
    name: Literal["token", "switch", "done"]
    data: Response
    id: int | None = None

    def encode(self) -> bytes:
        """As a server-sent event: ASCII, since some clients break lines at U+2028 too."""
        lines = f"event: {self.name}\n" + (f"id: {self.id}\n" if self.id is not None else "")
        return f"{lines}data: {self.data.model_dump_json(by_alias=True, ensure_ascii=True)}\n\n".encode()


async def result(events: AsyncGenerator[Event, None], kind: type[R]) -> R:
    """Run to the end; the `done` event's data."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event.data, kind):
                return event.data
    raise InternalError("the generation ended without a result")
