"""Whole distributions of a data set on disk: safetensors or Parquet files of bounded size, and an index.

A shard is written under another name and renamed once whole; only then are its rows in the index, which is the run's
`results.jsonl`. So a run that is killed has no half shard, and loses at most the rows of the one it was filling.

A shard's metadata (of a Parquet file: its schema's) is what all its rows have in common, each value as JSON: model,
kind, temperature, dtype on the wire, provenance. What is an item's own is in its line of the index.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from rl_onoff.client import AsyncClient
from rl_onoff.data import Row
from rl_onoff.data.spill import Key
from rl_onoff.errors import MissingDependency
from rl_onoff.runs.folder import RunFolder, read_results
from rl_onoff.runs.tasks import Record, Task, result_of
from rl_onoff.schemas import PromptMode, RowDtype, RowKind
from rl_onoff.tensors import FullDistributions

SHARD_BYTES: Final = 64 << 20
Format = Literal["safetensors", "parquet"]
#: Of an answer's metadata what is about its items, or about itself alone.
_OWN: Final = frozenset({"id", "tokens"})


@dataclass(frozen=True)
class FullRows(Task):
    """The rows of one model, `[T, V]` or the best `[T, k]`, for a `ShardWriter`. `dtype`: what crosses the wire."""

    model: str = ""
    top_k: int | None = None
    kind: RowKind = "logprobs"
    temperature: float = 1.0
    dtype: RowDtype = "float32"
    format: Format = "safetensors"
    prompt_mode: PromptMode = "shared"
    merge_eos: bool = False

    command = "distributions"
    needs = ("prompt", "solution")

    @property
    def models(self) -> tuple[str | None, ...]:
        return (self.model,)

    def settings(self) -> dict[str, Any]:
        return {
            "top_k": self.top_k,
            "kind": self.kind,
            "temperature": self.temperature,
            "dtype": self.dtype,
            "format": self.format,
        } | self.changed("prompt_mode", "merge_eos")

    async def work(self, client: AsyncClient, row: Row, missing: Collection[int]) -> list[Record]:
        (rows,) = await client.distributions(
            [row.item],
            full=True,
            model=self.model,
            top_k=self.top_k,
            kind=self.kind,
            temperature=self.temperature,
            dtype=self.dtype,
            prompt_mode=self.prompt_mode,
            merge_eos=self.merge_eos,
        )
        return [result_of(row, 0) | {"rows": rows}]


class ShardWriter:
    """A sink for `FullRows`: holds the rows of one shard, then writes them and their lines of the index."""

    def __init__(self, run: RunFolder, format: Format, shard_bytes: int = SHARD_BYTES) -> None:  # noqa: A002
        self._run, self._format, self._most = run, format, shard_bytes
        self._held: list[tuple[Record, FullDistributions]] = []
        self._bytes = 0
        # Never one that is in the index. One that is not was cut off from it by a kill: its rows are asked again.
        indexed = {record["shard"] for record in read_results(run.path) if "shard" in record}
        self._next = len(indexed)
        if format == "parquet":
            _arrow()

    @property
    def done(self) -> Collection[Key]:
        """What is in the index."""
        return self._run.done

    def append(self, records: list[Record]) -> None:
        """Take rows; refused rows go straight to the index."""
        for record in records:
            if "error" in record:
                self._run.append([record])
                continue
            rows: FullDistributions = record["rows"]
            self._held.append(({name: value for name, value in record.items() if name != "rows"}, rows))
            self._bytes += rows.values.nbytes + (0 if rows.ids is None else rows.ids.nbytes)
            if self._bytes >= self._most:
                self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        path = self._free_name()
        temporary = path.with_suffix(".tmp")
        common = _common(rows.metadata for _, rows in self._held)
        named = [(record["id"], rows) for record, rows in self._held]
        try:
            (_safetensors if self._format == "safetensors" else _parquet)(temporary, named, common)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        self._run.append(record | _indexed(rows, common) | {"shard": path.name} for record, rows in self._held)
        self._held, self._bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):  # the disk is full: the same again would hide why
            self.flush()

    def _free_name(self) -> Path:
        path = self._run.path / f"shard-{self._next:05d}.{self._format}"
        self._next += 1
        return path


def _common(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What of the answers' metadata holds for the items of all."""
    first, *others = answers
    return {
        name: value
        for name, value in first.items()
        if name not in _OWN and all(name in other and other[name] == value for other in others)
    }


def _indexed(rows: FullDistributions, common: Mapping[str, Any]) -> Record:
    """What the index says of an item: its tokens, the shape of its values, and what is not `common` to its shard."""
    found: Record = {"token_ids": rows.token_ids.tolist(), "shape": list(rows.values.shape)}
    if "tokens" in rows.metadata:
        (found["tokens"],) = rows.metadata["tokens"]  # the answer to one item
    rest = {name: value for name, value in rows.metadata.items() if name not in _OWN | common.keys()}
    return found | ({"metadata": rest} if rest else {})


def _safetensors(path: Path, held: list[tuple[str, FullDistributions]], metadata: Mapping[str, Any]) -> None:
    """Tensors `{id}.values` `[T, V]`, or `[T, k]` with `{id}.ids` and `{id}.tail` `[T]`; `[T]` also `{id}.token_ids`,
    `{id}.token_logprobs`, `{id}.entropy`."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for row, rows in held:
        tensors |= {f"{row}.{name}": np.ascontiguousarray(array) for name, array in _arrays(rows).items()}
    save_file(tensors, path, metadata=_as_json(metadata))


def _parquet(path: Path, held: list[tuple[str, FullDistributions]], metadata: Mapping[str, Any]) -> None:
    """One line per position: id, position, token_id, token_logprob, entropy, values; of the best k also ids, tail."""
    arrow, parquet = _arrow()
    writer = None
    try:
        for row, rows in held:
            arrays = _arrays(rows)
            length, width = rows.values.shape
            columns = {
                "id": arrow.array([row] * length),
                "position": arrow.array(np.arange(length, dtype=np.int32)),
                "token_id": arrow.array(arrays["token_ids"]),
            }
            for name, column in (("token_logprobs", "token_logprob"), ("entropy", "entropy"), ("tail", "tail")):
                if name in arrays:
                    columns[column] = arrow.array(arrays[name])
            for name in ("ids", "values"):
                if name in arrays:
                    columns[name] = arrow.FixedSizeListArray.from_arrays(arrow.array(arrays[name].ravel()), width)
            table = arrow.table(columns).replace_schema_metadata(_as_json(metadata))
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _arrays(rows: FullDistributions) -> dict[str, npt.NDArray[Any]]:
    named = {
        "token_ids": rows.token_ids,
        "token_logprobs": rows.token_logprobs,
        "ids": rows.ids,
        "values": rows.values,
        "entropy": rows.entropy,
        "tail": rows.tail,
    }
    return {name: array for name, array in named.items() if array is not None}


def _as_json(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Both formats hold strings alone."""
    return {name: json.dumps(value) for name, value in metadata.items()}


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise MissingDependency.of("pyarrow", "data", "writing Parquet") from error
