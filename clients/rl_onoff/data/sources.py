"""Where rows come from: JSON, JSONL, CSV, TSV and Parquet files, run folders, Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
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
    """Rows that can be read again and again. `is_run`: they are the results of a run of ours."""

    is_run: bool = False

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
        return Run(path / RESULTS)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    kind = _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_BY_SUFFIX)
        raise DataError(f"{path}: its suffix must be one of {known}; a Hugging Face data set is hf:name:split")
    return kind(path)


class _File(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.path = path

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return {"source": self.name, "sha256": digest.hexdigest()}


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

    def __iter__(self) -> Iterator[Raw | Broken]:
        csv.field_size_limit(_CSV_FIELD)
        with self.path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
            rows = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
            try:
                header = next(rows, [])
                if not header:
                    raise DataError(f"{self.path} has no header line")
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
        index = 0
        for batch in self._file().iter_batches(batch_size=256):
            for fields in batch.to_pylist():
                yield Raw(f"{self.name} row {index}", fields)
                index += 1

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
        for index, fields in enumerate(self._load()):
            yield Raw(f"{self.name} row {index}", dict(fields))

    def identity(self) -> dict[str, Any]:
        fingerprint = str(getattr(self._load(), "_fingerprint", "")) if Path(self.path).is_dir() else None
        return {"source": self.name, "fingerprint": fingerprint}

    def _load(self) -> Any:
        datasets = _needs("datasets", "datasets", "reading Hugging Face data sets")
        try:
            if (Path(self.path) / "dataset_dict.json").is_file() or (Path(self.path) / "state.json").is_file():
                saved = datasets.load_from_disk(self.path)
                return saved[self.split] if isinstance(saved, dict) else saved
            return datasets.load_dataset(self.path, self.config, split=self.split, streaming=True)
        except (
            ValueError,
            OSError,
            KeyError,
        ) as error:  # unknown names, splits, no network: datasets' errors are these
            raise DataError(f"{self.name} cannot be loaded: {error}") from error


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


def _needs(module: str, package: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency.of(package, "data", purpose) from error
