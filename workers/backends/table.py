"""Models given as explicit next-token tables, so that expected outputs can be computed by hand.

A table is a JSON file:

    {"tokens": ["a", "b", "<eos>"],
     "eos": "<eos>",
     "max_len": 1000,
     "rows": {"": {"a": 0.9, "<eos>": 0.1},          after anything not listed
              "a b": {"b": 1.0}},                     after a sequence that ends in a, b: the longest match wins
     "delay": 0.0,                                    seconds a forward pass takes
     "turns": false,                                  whether passes wait for each other, as on one device
     "fail_on": "b",                                  a forward pass over this token fails (tests of faults):
     "fault": "raise"}                                it raises, has no "memory", or "hang"s in a busy loop

Tokens not named in a row have probability 0. Text is tokenised greedily into the tokens; `<unk>`, which no row ever
gives, is added for all else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from rl_onoff.errors import ConfigurationError, MissingDependency, PairMismatch
from rl_onoff.version import __version__
from workers.backends.base import Draft, Ids
from workers.libraries import versions
from workers.sampling import choose
from workers.wire import ModelInfo, ModelSpec, PairInfo, SamplingParams, WorkerSpec

T = TypeVar("T")
UNK = "<unk>"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[str]
    eos: str
    rows: dict[str, dict[str, float]]
    max_len: int = 1000
    delay: float = 0.0
    turns: bool = False
    fail_on: str | None = None
    fault: Literal["raise", "memory", "hang"] = "raise"


def read_table(path: str) -> Table:
    """Raises ConfigurationError for anything that is not a table of probabilities."""
    try:
        table = msgspec.json.decode(Path(path).read_bytes(), type=Table)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"{path} is not a table: {error}") from error
    for context, row in table.rows.items():
        unknown = [token for token in [*row, *context.split()] if token not in table.tokens]
        if unknown or abs(sum(row.values()) - 1) > 1e-9 or min(row.values()) < 0:
            raise ConfigurationError(f"{path}: row {context!r} must give known tokens probabilities that sum to 1")
    if "" not in table.rows or table.eos not in table.tokens:
        raise ConfigurationError(f"{path} needs a row '' and an eos among its tokens")
    return table


class TableModel:
    """A `LanguageModel` (and every sequence of it, since nothing is cached)."""

    def __init__(self, spec: ModelSpec, max_len: int | None) -> None:
        if spec.path is None:
            raise ConfigurationError(f"model {spec.name}: the table backend needs a path")
        self.table = read_table(spec.path)
        self.pieces = [*self.table.tokens, UNK]
        self._rows: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
        index = {piece: i for i, piece in enumerate(self.pieces)}
        for context, row in self.table.rows.items():
            probs = np.zeros(len(self.pieces))
            for piece, probability in row.items():
                probs[index[piece]] = probability
            with np.errstate(divide="ignore"):
                self._rows[tuple(index[piece] for piece in context.split())] = np.log(probs).astype(np.float32)
        self._longest = max(map(len, self._rows))
        self._fail_on = index.get(self.table.fail_on) if self.table.fail_on is not None else None
        self.steps = 0
        self.turn = asyncio.Lock()
        self.info = ModelInfo(
            name=spec.name,
            source=spec.path,
            revision=None,
            fingerprint=hashlib.sha256(Path(spec.path).read_bytes()).hexdigest(),
            dtype="float32",
            device="cpu",
            vocab_size=len(self.pieces),
            logit_columns=len(self.pieces),
            max_len=min(self.table.max_len, max_len or self.table.max_len),
            eos_ids=[index[self.table.eos]],
            chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
            parameters=0,
        )

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[TableSequence]:
        yield TableSequence(self)

    def row(self, prefix: Ids) -> npt.NDArray[np.float32]:
        """The row after `prefix`: that of the longest listed context it ends in."""
        for length in range(min(self._longest, len(prefix)), -1, -1):
            found = self._rows.get(tuple(prefix[len(prefix) - length :]))
            if found is not None:
                return found
        raise AssertionError("read_table checked that the empty context is listed")


class TableSequence:
    def __init__(self, model: TableModel) -> None:
        self._model = model
        self.forwards = 0

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> npt.NDArray[np.float32]:
        """As `CachedSequence.rows`; a table's logits are its log-probabilities."""
        if self._model.table.turns:
            async with self._model.turn:
                await asyncio.sleep(self._model.table.delay)
        else:
            await asyncio.sleep(self._model.table.delay)
        if self._model._fail_on in ids:
            self._fail()
        self.forwards += 1
        self._model.steps += 1
        return np.stack([self._model.row(ids[:t]) for t in range(start, len(ids) + 1)])

    def _fail(self) -> None:
        if self._model.table.fault == "memory":
            raise MemoryError
        while self._model.table.fault == "hang":
            pass
        raise RuntimeError("this table was told to fail here")

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        prefix = list(ids)
        rows: list[npt.NDArray[np.float32]] = []
        while len(rows) < count and (not rows or prefix[-1] not in eos):
            rows.append(await self.rows(prefix, len(prefix)))
            prefix += choose(rows[-1], params, [len(prefix)])
        return Draft(prefix[len(ids) :], np.concatenate(rows))


class TablePair:
    pass_costs = None

    def __init__(self, spec: WorkerSpec) -> None:
        self.a, self.b = TableModel(spec.a, spec.max_len), TableModel(spec.b, spec.max_len)
        if self.a.pieces != self.b.pieces:
            raise PairMismatch(f"the tables of {spec.a.name} and {spec.b.name} list different tokens")
        self.info = PairInfo(
            name=spec.pair,
            backend="table",
            version=__version__,
            libraries=versions(),
            a=self.a.info,
            b=self.b.info,
            tokenizer=_tokenizer(self.a.table),
            special_tokens={"eos_token": self.a.table.eos},
        )

    @property
    def steps(self) -> int:
        return self.a.steps + self.b.steps

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def close(self) -> None:
        return None


def _tokenizer(table: Table) -> str:
    """A `tokenizer.json` that splits text into the table's tokens, longest first."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise MissingDependency.of("tokenizers", "server", "the table backend") from error
    pieces = [*table.tokens, UNK]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    plain = sorted((piece for piece in table.tokens if piece != table.eos), key=len, reverse=True)
    pattern = "|".join(re.escape(piece) for piece in plain) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(table.eos, special=True, normalized=False)])
    text: str = tokenizer.to_str()
    json.loads(text)
    return text


def load(spec: WorkerSpec) -> TablePair:
    return TablePair(spec)
