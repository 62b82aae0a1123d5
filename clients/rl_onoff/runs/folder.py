"""A run's folder: who may write to it, what it is a run of, and results that are whole or not there.

Results are appended in single writes of whole lines. What a kill leaves of a line is cut off when the run is resumed; a
disk that is full while a line is written is left with the last whole one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from rl_onoff.data.sources import RESULTS
from rl_onoff.data.spill import Key, Keys
from rl_onoff.errors import DataError, OutputError, RunLocked, RunMismatch
from rl_onoff.version import __version__

MANIFEST: Final = "manifest.json"
SUMMARY: Final = "summary.json"
LOCK: Final = "lock"
_BLOCK: Final = 1 << 16


def key_of(record: Mapping[str, Any]) -> Key:
    """The key of a line of results."""
    return (str(record.get("condition", "")), str(record["id"]), str(record.get("sample", 0)))


class RunFolder:
    """An open run. `done` holds the keys of all results; `summary`, once written, is in the folder too."""

    def __init__(self, path: Path, manifest: dict[str, Any], lock: IO[bytes]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._results = os.open(path / RESULTS, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._end = _whole_lines(self._results)
            os.ftruncate(self._results, self._end)
            self.done = Keys(key_of(record) for record in read_results(path))
        except BaseException:
            os.close(self._results)
            raise

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any], *, resume: bool) -> RunFolder:
        """A new run, or with `resume` one that was begun with the same identity.

        Raises RunLocked when another process writes there, RunMismatch when the folder holds another run, or one and
        `resume` was not asked for, OutputError when no run can be written there.
        """
        try:
            return cls._open(Path(path), identity, resume=resume)
        except OSError as error:
            raise OutputError(f"the output cannot be written: {path}: {error.strerror}") from error

    @classmethod
    def _open(cls, folder: Path, identity: Mapping[str, Any], *, resume: bool) -> RunFolder:
        if folder.suffix in (".jsonl", ".json", ".csv", ".parquet") or folder.is_file():
            raise RunMismatch(f"{folder}: a run is written to a folder, which holds {RESULTS}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            return cls(folder, _manifest(folder, dict(identity), resume=resume), lock)
        except BaseException:
            lock.close()
            raise

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write results, all of them or none; the keys of all must be new. Raises OSError when that cannot be done."""
        records = list(records)
        data = b"".join(
            json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
            for record in records
        )
        try:
            _write(self._results, data, self._end)
        except OSError:
            with suppress(OSError):  # the next start cuts it off as well
                os.ftruncate(self._results, self._end)
            raise
        self._end += len(data)
        self.done.update(map(key_of, records))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Say what came out."""
        _replace(self.path / SUMMARY, summary)

    def close(self) -> None:
        """Make sure that all is on the disk, and let others write."""
        try:
            os.fsync(self._results)
        finally:
            self.done.close()
            os.close(self._results)
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_results(path: str | Path) -> Iterator[dict[str, Any]]:
    """The results of a run, in the order they came. Raises DataError for a line that is none."""
    with (Path(path) / RESULTS).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # of a run that is being written, or was killed
            try:
                record = json.loads(line)
                key_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}/{RESULTS}:{number} is no result: {error}") from None
            yield record


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What a folder holds a run of. Raises DataError."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} holds no run: there is no {MANIFEST}") from None
    except ValueError as error:
        raise DataError(f"{path}/{MANIFEST} is no JSON: {error}") from None
    if not isinstance(manifest, dict) or "identity" not in manifest:
        raise DataError(f"{path}/{MANIFEST} is no manifest of a run")
    return manifest


def _manifest(folder: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    identity = json.loads(json.dumps(identity))  # as it will be read again
    if not (folder / MANIFEST).exists():
        if (folder / RESULTS).exists():
            raise RunMismatch(f"{folder} holds results but no {MANIFEST}: it is no run of this program")
        manifest: dict[str, Any] = {"version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        manifest["identity"] = identity
        _replace(folder / MANIFEST, manifest)
        return manifest
    manifest = read_manifest(folder)
    if not resume:
        raise RunMismatch(f"{folder} holds a run already: --resume goes on with it, another --output starts anew")
    differences = list(_differences(manifest["identity"], identity))
    if differences:
        raise RunMismatch(f"{folder} holds a run of another configuration: {'; '.join(differences[:5])}")
    return manifest


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield f"{path} was {json.dumps(old)[:80]}, now {json.dumps(new)[:80]}"


def _locked(folder: Path) -> IO[bytes]:
    lock = (folder / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunLocked(f"another process writes to {folder}") from None
    except BaseException:
        lock.close()
        raise
    return lock


def _write(file: int, data: bytes, at: int) -> None:
    """A full disk takes a part of what is written, and says so at the next write."""
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], at + written)


def _whole_lines(file: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _replace(path: Path, document: Mapping[str, Any]) -> None:
    """The whole file or the old one, never half of it."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
