"""What sequences ask of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rl_onoff.errors import InternalError
from workers.backends.base import Draft
from workers.sampling import choose
from workers.wire import SamplingParams


class BatchedModel(Protocol):
    """A model that can run calls of one shape as one forward pass. Used in the engine's thread alone."""

    def shape(self, call: RowsCall) -> int:
        """Plan the call's next pass. Calls of equal shape share it; 1 is a single new token."""
        ...

    def forward(self, calls: list[RowsCall]) -> list[torch.Tensor | None]:
        """One pass for planned calls of one shape: their rows, or None for a call that needs further passes."""
        ...

    def discard(self, call: RowsCall) -> None:
        """The call failed over its own rows: nothing of its sequence may be used again."""
        ...


@dataclass(slots=True, eq=False)
class RowsCall:
    """Rows `start`..`len(ids)` of one sequence."""

    model: BatchedModel
    slot: Any
    ids: list[int]
    start: int
    logits: bool
    future: asyncio.Future[Any]
    passes: int = field(default=0, init=False)
    waited: int = field(default=0, init=False)
    first: int = field(default=0, init=False)  # the planned pass: first token fed, one past the last, logits kept
    end: int = field(default=0, init=False)
    keep: int = field(default=0, init=False)

    @property
    def wanted(self) -> int:
        """Rows asked for."""
        return len(self.ids) - self.start + 1

    def absorb(self, rows: torch.Tensor) -> Any:
        """The answer, once these rows complete it; None if the call goes on."""
        if rows.amax(-1).isnan().any():
            raise InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")
        return rows


@dataclass(slots=True, eq=False)
class HiddenCall(RowsCall):
    """Hidden states instead of rows."""


@dataclass(slots=True, eq=False)
class DraftCall(RowsCall):
    """The next `count` tokens, each drawn here as soon as its row is there."""

    count: int
    params: SamplingParams
    eos: frozenset[int]
    drawn: list[torch.Tensor] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.count - len(self.drawn)

    def absorb(self, rows: torch.Tensor) -> Draft | None:
        RowsCall.absorb(self, rows)
        token = choose(rows, self.params, [len(self.ids)])[0]
        self.drawn.append(rows)
        self.ids.append(token)
        self.start = len(self.ids)
        if self.remaining and token not in self.eos:
            return None
        return Draft(self.ids[-len(self.drawn) :], torch.cat(self.drawn))


@dataclass(slots=True, eq=False)
class ComputeCall:
    """Array work that belongs in the engine's thread."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]
