"""What sequences ask of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from rl_onoff.errors import InternalError
from workers.backends.base import Draft
from workers.sampling import draw, draw_each, on_host
from workers.wire import SamplingParams


class BatchedModel(Protocol):
    """A model that can run calls of one shape as one forward pass. Used in the engine's thread alone."""

    @property
    def pass_tokens(self) -> int:
        """How many new tokens a pass of long calls may have, unless one call has more."""
        ...

    def shape(self, call: RowsCall) -> int:
        """Plan the call's next pass. Calls of equal shape can share it; 1 is a single new token.

        Its absolute value is how many tokens of the call the pass has, filled up.
        """
        ...

    def forward(self, calls: list[RowsCall]) -> list[torch.Tensor]:
        """One pass for planned calls of one shape: their rows; of a call that needs further passes the last one."""
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

    @property
    def complete(self) -> bool:
        """Whether the planned pass is the last one before the answer, or the next drafted token."""
        return self.end == len(self.ids)

    def look(self, rows: torch.Tensor) -> None:
        """What takes a processor's time over rows just computed, beside other calls': array work of one thread alone.

        Raises InternalError for NaN.
        """
        host = on_host(rows) if rows.dtype == torch.float32 else None  # numpy has no bfloat16
        if np.isnan(host.max()) if host is not None else rows.amax().isnan():
            raise _overflow()

    def absorb(self, rows: torch.Tensor) -> Any:
        """The answer, once these rows, which were looked at, complete it; None if the call goes on."""
        return rows if self.complete else None


def _overflow() -> InternalError:
    return InternalError("the model gave NaN instead of probabilities: its numbers overflow in this dtype")


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
    gaps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # of the row looked at last

    @property
    def remaining(self) -> int:
        return self.count - len(self.drawn)

    def look(self, rows: torch.Tensor) -> None:
        RowsCall.look(self, rows)
        if not self.complete:
            return
        self.tokens, gaps = draw(rows, self.params, [len(self.ids)])
        self.gaps += gaps

    def absorb(self, rows: torch.Tensor) -> Draft | None:
        if not self.complete:
            return None
        (token,) = self.tokens
        self.drawn.append(rows)
        self.ids.append(token)
        self.start = len(self.ids)
        if self.remaining and token not in self.eos:
            return None
        return Draft(self.ids[-len(self.drawn) :], torch.cat(self.drawn), self.gaps)


def look_together(calls: Sequence[RowsCall], batch: Sequence[torch.Tensor]) -> list[BaseException | None]:
    """`look` of all these calls, rows on a GPU: it is waited for twice, however many the calls are."""
    errors: list[BaseException | None] = [None] * len(calls)
    highest = torch.stack([rows.amax().float() for rows in batch])
    for i, nan in enumerate(highest.isnan().tolist()):
        if nan:
            errors[i] = _overflow()
    drafts = [
        (call, rows)
        for call, rows, error in zip(calls, batch, errors, strict=True)
        if error is None and isinstance(call, DraftCall) and call.complete
    ]
    if drafts:
        params, places = [call.params for call, _ in drafts], [len(call.ids) for call, _ in drafts]
        drawn = draw_each(torch.cat([rows for _, rows in drafts]), params, places)
        for (call, _), token, gap in zip(drafts, *drawn, strict=True):
            call.tokens = [token]
            call.gaps.append(gap)
    return errors


@dataclass(slots=True, eq=False)
class ComputeCall:
    """Array work that belongs in the engine's thread."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]
    bulk: bool = False
