"""Which column holds what: told by the caller, or guessed from the names data sets commonly use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Final, Literal, get_args

from rl_onoff.errors import DataError

Role = Literal["id", "prompt", "messages", "solution", "reference"]

#: Names tried for each role, in this order, in lower case.
GUESSES: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "uid", "_id", "unique_id", "problem_id", "question_id", "task_id", "idx", "index"),
    "prompt": ("prompt", "question", "problem", "query", "instruction", "input"),
    "messages": ("messages", "conversation", "conversations"),
    "solution": ("solution", "response", "completion", "output", "generation", "text", "rationale"),
    "reference": ("reference", "answer", "target", "gold", "label", "final_answer", "expected_answer"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of each role; None where there is none."""

    id: str | None = None
    prompt: str | None = None
    messages: str | None = None
    solution: str | None = None
    reference: str | None = None

    def resolve(self, names: Collection[str]) -> Columns:
        """What was left open is guessed. Raises DataError for a column that does not exist.

        Where the prompt's column was named, messages of another are not guessed: they would win over it.
        """
        for role, column in asdict(self).items():
            if column is not None and column not in names:
                raise DataError(f"there is no column {column!r} for the {role}: " + _there_are(column, names))
        found = replace(self, **{role: getattr(self, role) or _guess(role, names) for role in get_args(Role)})
        if self.prompt is not None and self.messages is None and found.messages != self.prompt:
            return replace(found, messages=None)
        return found

    def missing(self, needs: Iterable[str], names: Collection[str]) -> str | None:
        """What is needed and not there, as a message; `prompt` may come as messages."""
        for role in needs:
            if getattr(self, role) is None and not (role == "prompt" and self.messages is not None):
                return (
                    f"no column looks like a {role} ({', '.join(GUESSES[role])}); "
                    f"name it with --{role}-column: there are {', '.join(sorted(names))}"
                )
        return None


def _guess(role: str, names: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[guess] for guess in GUESSES[role] if guess in by_lower), None)


def _there_are(column: str, names: Collection[str]) -> str:
    close = get_close_matches(column, names, n=1)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return f"there are {', '.join(sorted(names))}{hint}"
