"""Which column holds what: told by the caller, or guessed from the names data sets commonly use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Final, Literal, get_args

from rl_onoff.errors import DataError

Role = Literal["id", "prompt", "messages", "prompt_ids", "solution", "solution_ids", "reference"]

#: Names tried for each role, in this order, in lower case.
GUESSES: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "uid", "_id", "unique_id", "problem_id", "question_id", "task_id", "idx", "index"),
    "prompt": ("prompt", "question", "problem", "query", "instruction", "input"),
    "messages": ("messages", "conversation", "conversations"),
    "prompt_ids": ("prompt_ids", "prompt_token_ids"),
    "solution": ("solution", "response", "completion", "output", "generation", "text", "rationale"),
    "solution_ids": ("solution_ids", "solution_token_ids"),
    "reference": ("reference", "answer", "target", "gold", "label", "final_answer", "expected_answer"),
}


#: Roles that may take another's place, and win over it in a row that has both.
_INSTEAD: Final[Mapping[str, tuple[Role, ...]]] = {"prompt": ("messages", "prompt_ids"), "solution": ("solution_ids",)}


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of each role; None where there is none. `prompt_ids` and `solution_ids` hold lists of token ids."""

    id: str | None = None
    prompt: str | None = None
    messages: str | None = None
    solution: str | None = None
    reference: str | None = None
    prompt_ids: str | None = None
    solution_ids: str | None = None

    def resolve(self, names: Collection[str]) -> Columns:
        """What was left open is guessed. Raises DataError for a column that does not exist.

        Where the prompt's column was named, messages or ids of another are not guessed: they would win over it. So with
        the solution's.
        """
        for role, column in asdict(self).items():
            if column is not None and column not in names:
                raise DataError(f"there is no column {column!r} for the {role}: " + _there_are(column, names))
        found = replace(self, **{role: getattr(self, role) or _guess(role, names) for role in get_args(Role)})
        for role, others in _INSTEAD.items():
            if (named := getattr(self, role)) is not None:
                beside = [each for each in others if getattr(self, each) is None and getattr(found, each) != named]
                found = replace(found, **dict.fromkeys(beside))
        return found

    def identity(self) -> dict[str, str | None]:
        """For the manifest of a run: roles of ids only where there are such, as they were not always known."""
        return {role: name for role, name in asdict(self).items() if name is not None or not role.endswith("_ids")}

    def missing(self, needs: Iterable[str], names: Collection[str]) -> str | None:
        """What is needed and not there, as a message; `prompt` may come as messages or ids, `solution` as ids."""
        for role in needs:
            forms = (role, *_INSTEAD.get(role, ()))
            if all(getattr(self, form) is None for form in forms):
                return (
                    f"no column looks like a {role} ({', '.join(guess for form in forms for guess in GUESSES[form])}); "
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
