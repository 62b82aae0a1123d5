"""What grows with a data set, on the disk instead of in memory: SQLite's private temporary databases.

Such a database has no name and goes with its connection, however the process ends. A page cache of 2 MB is all it has
of the memory. It is never what a run is resumed from: that is `results.jsonl` alone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, MutableSet

#: What a result is known by: the row's id and the sample, after the condition where a run has several.
Key = tuple[str, ...]


def temporary() -> sqlite3.Connection:
    """An empty database on the disk. Close it."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA cache_size = -2000")
    database.execute("BEGIN")  # never committed: nothing waits for the disk
    return database


class Keys(MutableSet[Key]):
    """A set of tuples of strings whose memory does not grow with it. Sorted when iterated, once closed empty."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._database: sqlite3.Connection | None = temporary()
        self._database.execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._count = 0
        try:
            self.update(keys)
        except BaseException:
            self.close()
            raise

    @classmethod
    def _from_iterable(cls, keys: Iterable[Key]) -> set[Key]:  # type: ignore[override]
        return set(keys)  # of an operator such as &: whoever writes it wants a set of his own

    def add(self, key: Key) -> None:
        """Raises ValueError once closed."""
        if self._database is None:
            raise ValueError("the set is closed")
        self._count += self._database.execute("INSERT OR IGNORE INTO keys VALUES (?)", (json.dumps(key),)).rowcount

    def update(self, keys: Iterable[Key]) -> None:
        """Add all."""
        for key in keys:
            self.add(key)

    def discard(self, key: Key) -> None:
        """Take one out, if it is there."""
        if self._database is not None:
            self._count -= self._database.execute("DELETE FROM keys WHERE key = ?", (json.dumps(key),)).rowcount

    def __contains__(self, key: object) -> bool:
        if self._database is None:
            return False
        found = self._database.execute("SELECT 1 FROM keys WHERE key = ?", (json.dumps(key),)).fetchone()
        return found is not None

    def __iter__(self) -> Iterator[Key]:
        rows = () if self._database is None else self._database.execute("SELECT key FROM keys ORDER BY key")
        return (tuple(json.loads(key)) for (key,) in rows)

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Give the disk back."""
        if self._database is not None:
            self._database.close()
            self._database, self._count = None, 0
