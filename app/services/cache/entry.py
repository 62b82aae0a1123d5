"""What a store holds under one key, and what a store is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: Named arrays whose first axis runs over the positions of one block.
Entry = Mapping[str, npt.NDArray[Any]]


def size_of(entry: Entry) -> int:
    """Bytes of its arrays."""
    return sum(array.nbytes for array in entry.values())


def joined(entries: Sequence[Entry]) -> Entry:
    """One entry over the positions of all, in memory of its own."""
    return {name: np.concatenate([entry[name] for entry in entries]) for name in entries[0]}


def cut(entry: Entry, begin: int, end: int | None = None) -> Entry:
    """Its positions `begin`..`end - 1`, as views."""
    return {name: array[begin:end] for name, array in entry.items()}


class Store(Protocol):
    """Never raises: what cannot be read is not there, what cannot be written is dropped, and both are counted."""

    async def get(self, keys: Sequence[bytes], *, bulky: bool = False) -> list[Entry | None]:
        """Of `bulky` entries those after the first that is missing may be left out."""
        ...

    def put(self, key: bytes, entry: Entry, *, bulky: bool) -> None:
        """Returns at once. `bulky` entries (whole rows) are the first to go where room is short."""
        ...

    async def close(self) -> None: ...
