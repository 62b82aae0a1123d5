"""Where rows come from: JSON, JSONL, CSV, TSV and Parquet files, run folders, Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rl_onoff.errors import DataError, MissingDependency

#: The file of a run folder that can be read as data again.
RESULTS: Final = "results.jsonl"
_CHUNK: Final = 1 << 20
# A field of a CSV file may be a whole solution; the module's own limit is 128 KiB.
_CSV_FIELD: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as it stands in the source. `where` is for messages: `problems.jsonl:12`."""

    where: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be used, and why."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class Source(ABC):
    """Rows that can be read again and again. `is_run`: they are the results of a run of ours.

    `cells`: all values are text, lists as JSON, and an empty one is none.
    """

    is_run: bool = False
    cells: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __iter__(self) -> Iterator[Raw | Broken]:
        """The rows from the first on."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this data set from another: of a file its SHA-256."""

    def count(self) -> int | None:
        """How many rows there are, if that is cheap to know."""
        return None


def open_source(spec: str | Path) -> Source:
    """The source of a path (by its suffix; a folder is a run's), or of `hf:name[:config]:split`. Raises DataError."""
    if isinstance(spec, str) and spec.startswith("hf:"):
        return HuggingFace(spec)
    path = Path(spec)
    if path.is_dir():
        if not (path / RESULTS).is_file():
            raise DataError(f"{path} is a folder without {RESULTS}; for a folder of data files: hf:{path}:train")
        return Run(_readable(path / RESULTS))
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    kind = _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_BY_SUFFIX)
        raise DataError(f"{path}: its suffix must be one of {known}; a Hugging Face data set is hf:name:split")
    return kind(_readable(path))


def _readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class _File(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.path = path

    def identity(self) -> dict[str, Any]:
        return {"source": self.name, "sha256": _sha256(self.path)}


class JsonLines(_File):
    """One object per line; blank lines are passed over."""

    def __iter__(self) -> Iterator[Raw | Broken]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield _parsed(f"{self.name}:{number}", line)

    def count(self) -> int | None:
        with self.path.open("rb") as file:
            return sum(not line.isspace() for line in file)


class Run(JsonLines):
    """The results of a run; rows that failed are passed over."""

    is_run = True

    def __iter__(self) -> Iterator[Raw | Broken]:
        return (row for row in super().__iter__() if isinstance(row, Broken) or "error" not in row.fields)


class Json(_File):
    """A list of objects, or an object with one such list in it. Read whole: for large sets there is JSONL."""

    def __iter__(self) -> Iterator[Raw | Broken]:
        for index, fields in enumerate(self._rows()):
            where = f"{self.name}[{index}]"
            yield Raw(where, fields) if isinstance(fields, dict) else Broken(where, "no object")

    def _rows(self) -> list[Any]:
        try:
            document = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} is no JSON: {error}") from None
        lists = [document] if isinstance(document, list) else []
        if isinstance(document, dict):
            lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(f"{self.path} must be a list of objects, or an object that holds one list")
        return lists[0]


class Csv(_File):
    """With a header line. TSV by its suffix."""

    cells = True

    def __iter__(self) -> Iterator[Raw | Broken]:
        csv.field_size_limit(_CSV_FIELD)
        with self.path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
            rows = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
            try:
                header = next(rows, [])
                if not header:
                    raise DataError(f"{self.path} has no header line")
                twice = next((name for name in header if name and header.count(name) > 1), None)
                if twice is not None:
                    raise DataError(f"{self.path} has the column {twice!r} twice")
                for cells in rows:
                    where = f"{self.name}:{rows.line_num}"
                    if len(cells) == len(header):
                        yield Raw(where, dict(zip(header, cells, strict=True)))
                    elif cells:
                        yield Broken(where, f"{len(cells)} cells, the header has {len(header)}")
            except csv.Error as error:  # the reader has lost its place: what follows cannot be told apart
                raise DataError(f"{self.name}:{rows.line_num}: {error}") from None


class Parquet(_File):
    """Read in batches."""

    def __iter__(self) -> Iterator[Raw | Broken]:
        batches = self._file().iter_batches(batch_size=256)
        return _numbered(self.name, (fields for batch in batches for fields in batch.to_pylist()))

    def count(self) -> int | None:
        return int(self._file().metadata.num_rows)

    def _file(self) -> Any:
        parquet = _needs("pyarrow.parquet", "pyarrow", "reading Parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (ValueError, OSError) as error:  # pyarrow's own errors are both
            raise DataError(f"{self.path} is no Parquet file: {error}") from None


class HuggingFace(Source):
    """`hf:name[:config]:split`, streamed: from the hub, or from a local folder of data files."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        match spec.removeprefix("hf:").split(":"):
            case [str(name), str(split)] if name and split:
                self.path, self.config, self.split = name, None, split
            case [str(name), str(config), str(split)] if name and split:
                self.path, self.config, self.split = name, config or None, split
            case _:
                raise DataError(f"{spec}: a Hugging Face data set is hf:name:split or hf:name:config:split")

    def __iter__(self) -> Iterator[Raw | Broken]:
        found = self._load()
        return _numbered(self.name, found, import_module("datasets.exceptions").DatasetsError)

    def identity(self) -> dict[str, Any]:
        """Of a local folder the SHA-256 of all its files; a data set on the hub is told by its name alone."""
        folder = Path(self.path)
        return {"source": self.name, "fingerprint": _digest(folder) if folder.is_dir() else None}

    def _load(self) -> Any:
        datasets = _needs("datasets", "datasets", "reading Hugging Face data sets")
        try:
            if (Path(self.path) / "dataset_dict.json").is_file() or (Path(self.path) / "state.json").is_file():
                return self._split_of(datasets.load_from_disk(self.path))
            return datasets.load_dataset(self.path, self.config, split=self.split, streaming=True)
        except (
            ValueError,
            OSError,
            KeyError,
        ) as error:  # unknown names, splits, no network: datasets' errors are these
            raise DataError(f"{self.name} cannot be loaded: {error}") from error

    def _split_of(self, saved: Any) -> Any:
        """Of what `save_to_disk` wrote. A single data set that does not know its split is `train`, as elsewhere."""
        splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if self.split not in splits:
            raise DataError(f"{self.name}: there is no split {self.split!r}; there are {', '.join(splits)}")
        return splits[self.split]


_BY_SUFFIX: Final[dict[str, type[_File]]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": Json,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}


def _parsed(where: str, line: bytes) -> Raw | Broken:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken(where, f"no JSON: {error}")
    return Raw(where, fields) if isinstance(fields, dict) else Broken(where, "no object")


def _numbered(name: str, rows: Iterable[Mapping[str, Any]], *own: type[Exception]) -> Iterator[Raw]:
    """Rows as pyarrow or datasets give them; what is wrong with their data becomes a DataError. `own`: its errors."""
    arrow: type[Exception] = import_module("pyarrow").ArrowException
    unreadable: tuple[type[Exception], ...] = (arrow, ValueError, OSError, TypeError, LookupError, *own)
    left, index = iter(rows), 0
    while True:
        where = f"{name} row {index}"
        try:
            fields = dict(next(left))
        except StopIteration:
            return
        except unreadable as error:
            raise DataError(f"{where}: it, or one soon after it, cannot be read: {error}") from error
        yield Raw(where, fields)
        index += 1


def _digest(folder: Path) -> str:
    """Of all files by their names and contents; hidden ones are passed over, as datasets does."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{_sha256(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _needs(module: str, package: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency.of(package, "data", purpose) from error
