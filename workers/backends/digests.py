"""SHA-256 digests of files, remembered beside other caches of the user by place, size and time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Final

#: Files smaller than this are read again every time.
_WORTH: Final = 1 << 20
#: The file forgets the oldest beyond so many.
_KEPT: Final = 1000


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rl-onoff" / "digests.json"


class Digests:
    """Two processes may save at the same time: the last wins, and what is lost is computed again."""

    def __init__(self, known: dict[str, str]) -> None:
        self._known = known
        self._changed = False

    @classmethod
    def load(cls) -> Digests:
        try:
            known = json.loads(_file().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        return cls({str(k): str(v) for k, v in known.items()} if isinstance(known, dict) else {})

    def of(self, path: Path) -> bytes:
        """The digest of the file's contents."""
        found = path.resolve()
        with found.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < _WORTH:
                return hashlib.file_digest(file, "sha256").digest()
            key = f"{found}|{status.st_ino}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
            known = self._known.get(key, "")
            with contextlib.suppress(ValueError):
                if len(digest := bytes.fromhex(known)) == hashlib.sha256().digest_size:
                    return digest
            digest = hashlib.file_digest(file, "sha256").digest()
        self._known[key] = digest.hex()
        self._changed = True
        return digest

    def save(self) -> None:
        """Where that is possible: a home that cannot be written to costs time and nothing else."""
        if not self._changed:
            return
        path = _file()
        kept = dict(list(self._known.items())[-_KEPT:])
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                json.dump(kept, file)
            os.replace(file.name, path)
