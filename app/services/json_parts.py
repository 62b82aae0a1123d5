"""A large answer as JSON, in pieces short enough to be written on the event loop, others' turns between them.

In a thread it would hold up the event loop all the same: what writes JSON never lets go of the interpreter, and where
something does, the event loop has to fight for it after every call to the system.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from app.services.beside import SHORT

_PART_BYTES: Final = 1 << 20
#: Characters that are written in the time of one value.
_CHARS: Final = 64
_ANY: Final = TypeAdapter[Any](Any)


async def parts(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces joined to parts worth sending; after each piece it is others' turn."""
    part = bytearray()
    for piece in pieces:
        if part:
            await asyncio.sleep(0)
        part += piece
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def pieces(model: BaseModel, *, exclude_unset: bool = False, ensure_ascii: bool = False) -> Iterator[bytes]:
    """Joined they are what `model_dump_json(by_alias=True)` gives."""
    return _Writer(exclude_unset, ensure_ascii).value(model)


@dataclass(frozen=True, slots=True)
class _Writer:
    exclude_unset: bool
    ensure_ascii: bool

    def value(self, value: Any) -> Iterator[bytes]:
        short = _weight(value) <= SHORT
        if isinstance(value, BaseModel):
            yield from [self._fields(value, None)] if short else self._model(value)
        elif isinstance(value, list) and not short:
            yield from self._list(value)
        elif isinstance(value, dict) and not short:
            yield from self._dict(value)
        else:
            yield self._whole(value)

    def _model(self, model: BaseModel) -> Iterator[bytes]:
        """Short fields together, by the model's own rules; long ones by themselves."""
        begin, run = b"{", set[str]()
        for name, value in [*model, (None, None)]:
            if name is not None and (_weight(value) <= SHORT or not isinstance(value, list | dict | BaseModel)):
                run.add(name)
                continue
            if run and (short := self._fields(model, run)) != b"{}":
                yield begin + short[1:-1]
                begin = b","
            run = set()
            if name is not None and not (self.exclude_unset and name not in model.model_fields_set):
                yield begin + self._whole(_alias(model, name)) + b":"
                yield from self.value(value)
                begin = b","
        yield b"{}" if begin == b"{" else b"}"

    def _list(self, entries: list[Any]) -> Iterator[bytes]:
        begin, first, weight = b"[", 0, 0
        for index, entry in enumerate(entries):
            own = _weight(entry)
            if weight + own > SHORT and first < index:
                yield begin + self._whole(entries[first:index])[1:-1]
                begin, first, weight = b",", index, 0
            weight += own
            if own > SHORT:
                yield begin
                yield from self.value(entry)
                begin, first, weight = b",", index + 1, 0
        if first < len(entries):
            yield begin + self._whole(entries[first:])[1:-1]
        yield b"]"

    def _dict(self, entries: dict[str, Any]) -> Iterator[bytes]:
        begin, run, weight = b"{", dict[str, Any](), 0
        for key, entry in entries.items():
            own = _weight(entry)
            if run and weight + own > SHORT:
                yield begin + self._whole(run)[1:-1]
                begin, run, weight = b",", {}, 0
            if own > SHORT:
                yield begin + self._whole(key) + b":"
                yield from self.value(entry)
                begin = b","
            else:
                run[key], weight = entry, weight + own
        if run:
            yield begin + self._whole(run)[1:-1]
        yield b"}"

    def _fields(self, model: BaseModel, names: set[str] | None) -> bytes:
        text = model.model_dump_json(
            by_alias=True, include=names, exclude_unset=self.exclude_unset, ensure_ascii=self.ensure_ascii
        )
        return text.encode()

    def _whole(self, value: Any) -> bytes:
        return _ANY.dump_json(value, by_alias=True, exclude_unset=self.exclude_unset, ensure_ascii=self.ensure_ascii)


def _weight(value: Any) -> int:
    """How many values it holds, about: the entries of a list or dictionary are taken to be alike."""
    if isinstance(value, float | int) or value is None:
        return 1
    if isinstance(value, str):
        return 1 + len(value) // _CHARS
    if isinstance(value, list):
        return 1 + len(value) * max(_weight(value[0]), _weight(value[-1])) if value else 1
    if isinstance(value, BaseModel):
        return sum(_weight(entry) for _, entry in value)
    if isinstance(value, dict):
        return 1 + len(value) * _weight(next(iter(value.values()))) if value else 1
    return 1


def _alias(model: BaseModel, name: str) -> str:
    field = type(model).model_fields.get(name)
    return (field.serialization_alias or name) if field is not None else name
