"""Switched generations that share what they have in common.

Two policies on one prompt, with one seed and the same sampling, write the same tokens until they first choose different
leaders whose tokens differ: a row, and the token each model draws from it, are functions of the tokens before. So the
signals that earlier generations recorded tell what a further policy decides, position by position, for as long as one
of them wrote the tokens that it would write. Only from there on is there anything to generate, after `given` tokens.

This is exact where a walk over a recorded trace for a whole generation is not: it ends at the first token no one wrote
(docs/studies.md). As with lookahead, a decision that hangs on the last bits of a float may turn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rl_onoff.data.sources import RESULTS
from rl_onoff.data.spill import temporary
from rl_onoff.policy import Lead, Policy, PolicyState, Signals, first_lead, initial_state, step
from rl_onoff.schemas import SwitchResponse

Record = Mapping[str, Any]


@dataclass
class Prefix:
    """The first tokens of a generation. Lists and `leads` have an entry per token; `ends`: how it ended, if it did."""

    token_ids: list[int] = field(default_factory=list)
    leads: str = ""
    tokens: list[str] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    ends: str | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __add__(self, rest: Prefix) -> Prefix:
        """What was known before, and what came after it."""
        if not self:
            return rest
        values = {name: [*self.values[name], *column] for name, column in rest.values.items()}
        tokens, leads = [*self.tokens, *rest.tokens], self.leads + rest.leads
        return Prefix([*self.token_ids, *rest.token_ids], leads, tokens, values, rest.ends)

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens of it."""
        values = {name: column[:length] for name, column in self.values.items()}
        return Prefix(self.token_ids[:length], self.leads[:length], self.tokens[:length], values)

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def settled(self, stop: Sequence[str]) -> Prefix:
        """As much of it as has its text for certain, whatever follows.

        A stop string that begins in its tokens and ends in a later one would cut their text: as many characters as the
        longest may yet need are left to be written again.
        """
        if self.ends is not None:
            return self
        length, missing = len(self), max(map(len, stop), default=1) - 1
        while length and missing > 0:
            length -= 1
            missing -= len(self.tokens[length])
        return self.cut(length)


def of_answer(answer: SwitchResponse) -> Prefix:
    """What the service wrote; after `given` tokens the part that follows them."""
    values = {answer.measure: answer.divergences, **answer.signals}
    return Prefix(answer.token_ids, answer.leads, answer.tokens, values, answer.finish_reason)


def of_record(record: Record) -> Prefix:
    """A whole generation, as it stands in a run's results. One of an older version counts as nothing."""
    if len(record.get("tokens", ())) != len(record["token_ids"]) or "max_tokens" not in record:
        return Prefix()
    values = {record["measure"]: record["divergences"], **record["signals"]}
    return Prefix(record["token_ids"], record["leads"], record["tokens"], values, record["finish_reason"])


def walk(
    policy: Policy, written: Iterable[Prefix], *, seed: int, start: int, measures: Iterable[str] = ()
) -> tuple[Prefix, Lead | None]:
    """What `policy` would write as far as that was written, and who leads the next token if that is known.

    `written`: generations from one prompt of `start` tokens, with one `seed` and the same sampling; `measures`: what
    has to be known of every token beside the policy's own.
    """
    recorded = list(dict.fromkeys([policy.watched, *measures]))
    alive = [each for each in written if len(each)]
    found = Prefix(values={name: [] for name in recorded})
    state: PolicyState = initial_state(policy)
    while True:
        at = len(found)
        if ended := next((each for each in alive if len(each) == at and each.ends is not None), None):
            found.ends, found.tokens = ended.ends, list(ended.tokens)  # whose text a stop string may have cut
            return found, None
        known = {name: value for each in alive if at < len(each) for name, value in _at(each, at).items()}
        # An infinite value has lost its sign on the way.
        values = {name: value for name in policy.signals if (value := known.get(name)) is not None}
        if not any(at < len(each) for each in alive) or len(values) < len(policy.signals):
            return found, None
        after, lead = step(policy, state, Signals(start + at, seed, values))
        led = next((e for e in alive if at < len(e) and e.leads[at] == lead and e.values.keys() >= {*recorded}), None)
        if led is None:
            return found, lead
        state = after
        found.token_ids.append(led.token_ids[at])
        found.leads += lead
        found.tokens.append(led.tokens[at])
        for name, column in found.values.items():
            column.append(led.values[name][at])
        alive = [each for each in alive if at < len(each) and each.token_ids[at] == led.token_ids[at]]


def _at(prefix: Prefix, position: int) -> dict[str, float | None]:
    return {name: column[position] for name, column in prefix.values.items()}


def switches(policy: Policy, leads: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    """Where the lead changes, as `/switch-generate` tells it. `values`: the watched measure at every token."""
    found = []
    before: str = first_lead(policy)
    for position, lead in enumerate(leads):
        if lead != before:
            found.append({"position": position, "from": before, "to": lead, "value": values[position]})
        before = lead
    return found


class Traces:
    """The results of finished runs, found by row and sample without being held in memory. Close it."""

    def __init__(self) -> None:
        self._database = temporary()
        self._database.execute("CREATE TABLE lines (id TEXT, sample INT, file INT, start INT, length INT)")
        self._database.execute("CREATE INDEX by_row ON lines (id, sample)")
        self._files: dict[Path, int] = {}

    def add(self, run: Path) -> None:
        """Take up a run's results; of a run that was taken up before nothing happens."""
        path = run / RESULTS
        if path in self._files:
            return
        file = os.open(path, os.O_RDONLY)
        self._files[path] = file
        start = 0
        with path.open("rb") as lines:
            for line in lines:
                record = json.loads(line)
                if "error" not in record:
                    where = (json.dumps(record["id"]), record.get("sample", 0), file, start, len(line))
                    self._database.execute("INSERT INTO lines VALUES (?, ?, ?, ?, ?)", where)
                start += len(line)

    def of(self, row: str, sample: int) -> list[Record]:
        """All results of a row's sample, in the order in which their runs were taken up."""
        query = "SELECT file, length, start FROM lines WHERE id = ? AND sample = ? ORDER BY rowid"
        return [json.loads(os.pread(*where)) for where in self._database.execute(query, (json.dumps(row), sample))]

    def close(self) -> None:
        """Forget them."""
        self._database.close()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
