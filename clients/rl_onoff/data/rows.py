"""Rows: what a request is made of, checked before it is sent."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from importlib import import_module
from itertools import chain, islice
from typing import Any, Final

from rl_onoff.data import values
from rl_onoff.data.columns import Columns
from rl_onoff.data.sources import Broken, Raw, Source
from rl_onoff.data.spill import Keys
from rl_onoff.errors import DataError, MissingDependency
from rl_onoff.philox import derive_seed

#: Rows of a source that settle its columns: not every row of a JSONL file has every column.
_SETTLING: Final = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One row, ready to be sent. `where` is for messages. Ids win over text where both are there."""

    id: str
    where: str
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    prompt_ids: list[int] | None = None
    solution: str | None = None
    solution_ids: list[int] | None = None
    reference: str | None = None

    @property
    def start(self) -> dict[str, Any]:
        """The fields of a generation: exactly one of prompt, messages, prompt_ids."""
        if self.prompt_ids is not None:
            return {"prompt_ids": self.prompt_ids}
        return {"messages": self.messages} if self.messages is not None else {"prompt": self.prompt}

    @property
    def item(self) -> dict[str, Any]:
        """The fields of an item to be scored."""
        solution = {"solution_ids": self.solution_ids} if self.solution_ids is not None else {"solution": self.solution}
        return self.start | solution

    def seed(self, seed: int) -> int:
        """This row's seed: a function of the run's seed and the row's id, whatever else is in the data set."""
        digest = blake2b(self.id.encode(), digest_size=8).digest()
        return derive_seed(seed, int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big"))


@dataclass(frozen=True, slots=True)
class Prompting:
    """How a row becomes a prompt: a Jinja template over its columns, and whether it is sent as a chat.

    `system` stands before a chat, and before messages that have no system message of their own. `reference_after` keeps
    of a reference what follows the last such mark (`####` in GSM8K).
    """

    template: str | None = None
    chat: bool = False
    system: str | None = None
    reference_after: str | None = None

    def messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """With the system message before them."""
        if self.system is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": self.system}, *messages]


@dataclass
class Reader:
    """The rows of a source. Iterate as often as you like; memory does not grow with what was read.

    `needs` names the roles every row must have: "prompt", "solution", "reference". `limit` counts rows of the source.
    Columns are settled by the source's first hundred rows; a row that lacks one is `Broken`. Raises DataError for
    columns that do not exist at all, and for a `prompting` that these rows have no use for.
    """

    source: Source
    needs: Collection[str] = ("prompt",)
    columns: Columns = field(default_factory=Columns)
    prompting: Prompting = field(default_factory=Prompting)
    limit: int | None = None

    def __post_init__(self) -> None:
        self._render = _renderer(self.prompting.template)

    def __iter__(self) -> Iterator[Row | Broken]:
        with closing(Keys()) as seen:
            yield from self._rows(seen)

    def _rows(self, seen: Keys) -> Iterator[Row | Broken]:
        source = iter(self.source)
        head = list(islice(source, _SETTLING))
        readable = [raw for raw in head if isinstance(raw, Raw)]
        columns = self._settle(readable) if readable else None
        for index, raw in enumerate(islice(chain(head, source), self.limit)):
            if isinstance(raw, Broken):
                yield raw
                continue
            if columns is None:
                columns = self._settle([raw])
            try:
                row = self._row(raw, columns, index)
            except values.Wrong as wrong:
                yield Broken(raw.where, str(wrong))
                continue
            if (row.id,) in seen:
                yield Broken(raw.where, f"the id {row.id!r} occurs a second time")
                continue
            seen.add((row.id,))
            yield row

    def settled(self) -> Columns:
        """The columns, as the first rows settle them, whatever the limit. Raises DataError where none can be read."""
        source = iter(self.source)
        head = list(islice(source, _SETTLING))
        readable = [raw for raw in head if isinstance(raw, Raw)]
        readable = readable or list(islice((raw for raw in source if isinstance(raw, Raw)), 1))
        if readable:
            return self._settle(readable)
        if head:
            raise DataError(f"{self.source.name} has no row that can be read: {head[0]}")
        raise DataError(f"{self.source.name} has no rows")

    def identity(self) -> dict[str, Any]:
        """What decides which rows come out: the source, the columns and the prompt; not the limit."""
        return self.source.identity() | {"columns": self.settled().identity(), "prompting": asdict(self.prompting)}

    def count(self) -> int | None:
        """How many rows will come, if that is cheap to know."""
        total = self.source.count()
        return total if self.limit is None or total is None else min(total, self.limit)

    def _settle(self, first: list[Raw]) -> Columns:
        names = list(dict.fromkeys(name for raw in first for name in raw.fields))
        columns = self.columns.resolve(names)
        if self.source.is_run:
            if self.columns.prompt_ids or self.columns.solution_ids:
                raise DataError(f"{self.source.name} holds a run, whose ids are in prompt_ids and token_ids: name none")
            columns = replace(columns, prompt_ids=None, solution_ids=None)
        elif self._makes_prompts and self.columns.prompt_ids is None and self._has_text(columns):
            columns = replace(columns, prompt_ids=None)
        needs = [role for role in self.needs if not (role == "prompt" and self._render is not None)]
        if self.source.is_run:
            needs = [role for role in needs if f"{role}_ids" not in names and "token_ids" not in names]
        if missing := columns.missing(needs, names):
            raise DataError(f"{first[0].where}: {missing}")
        self._check_prompting(columns, names)
        return columns

    def _check_prompting(self, columns: Columns, names: Collection[str]) -> None:
        given = self.prompting
        as_ids = "prompt_ids" in names if self.source.is_run else columns.prompt_ids is not None
        if as_ids and self._makes_prompts:
            raise DataError(f"{self.source.name} has prompts as ids: --template, --chat and --system cannot apply")
        if given.system is not None and not given.chat and self._messages_column(columns) is None:
            raise DataError("a system message (--system) needs a chat (--chat), or a column of messages")

    @property
    def _makes_prompts(self) -> bool:
        """Whether text is asked to be made into a prompt, which ids are already."""
        return bool(self.prompting.chat or self.prompting.template or self.prompting.system)

    def _has_text(self, columns: Columns) -> bool:
        return bool(self._render is not None or columns.prompt or columns.messages)

    def _messages_column(self, columns: Columns) -> str | None:
        """A template wins over it."""
        return columns.messages if self._render is None else None

    def _row(self, raw: Raw, columns: Columns, index: int) -> Row:
        fields = raw.fields
        row_id = str(index) if columns.id is None else values.identifier(fields, columns.id)
        if self.source.is_run and "sample" in fields:
            row_id = f"{row_id}#{fields['sample']}"
        if self.source.is_run:
            prompt_ids, solution_ids = fields.get("prompt_ids"), fields.get("token_ids")
        else:
            prompt_ids = values.ids(fields, columns.prompt_ids, as_json=self.source.cells)
            solution_ids = None
            if "solution" in self.needs:
                solution_ids = values.ids(fields, columns.solution_ids, as_json=self.source.cells)
        prompt, messages = self._prompt(fields, columns, prompt_ids)
        solution = None
        if "solution" in self.needs and not solution_ids:
            solution = values.text(fields, columns.solution, "solution", columns.solution_ids)
        reference = None
        if columns.reference is not None:
            try:
                reference = self._reference(fields, columns.reference)
            except values.Wrong:
                if "reference" in self.needs:
                    raise
        return Row(
            row_id,
            raw.where,
            prompt=prompt,
            messages=messages,
            prompt_ids=prompt_ids,
            solution=solution,
            solution_ids=solution_ids,
            reference=reference,
        )

    def _prompt(
        self, fields: dict[str, Any], columns: Columns, ids: list[int] | None
    ) -> tuple[str | None, list[dict[str, str]] | None]:
        if ids and not self.source.is_run:
            return None, None
        if (column := self._messages_column(columns)) is not None:
            return None, self.prompting.messages(values.messages(fields.get(column), column))
        if self._render is not None:
            prompt = self._render(fields)
        elif ids:
            return None, None
        else:
            prompt = values.text(fields, columns.prompt, "prompt", columns.prompt_ids)
        if not self.prompting.chat:
            return prompt, None
        return prompt, self.prompting.messages([{"role": "user", "content": prompt}])

    def _reference(self, fields: dict[str, Any], column: str) -> str:
        value = fields.get(column)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool | int | float):
            value = json.dumps(value)
        if not isinstance(value, str):
            raise values.Wrong(f"column {column!r}: a reference must be text or a number")
        mark = self.prompting.reference_after
        return values.encodable(value.rpartition(mark)[2].strip() if mark else value, column)


def _renderer(template: str | None) -> Any:
    if template is None:
        return None
    try:
        jinja2 = import_module("jinja2")
        sandbox = import_module("jinja2.sandbox")
    except ModuleNotFoundError as error:
        raise MissingDependency.of("jinja2", "data", "a prompt template") from error
    environment = sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the prompt template, line {error.lineno}: {error.message}") from None

    def render(fields: dict[str, Any]) -> str:
        try:
            prompt = str(compiled.render(fields))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise values.Wrong(f"the prompt template: {error}") from None
        if not prompt:
            raise values.Wrong("the prompt template gives an empty prompt")
        return values.encodable(prompt, "prompt")

    return render
