"""What a backend is: two models of one vocabulary behind a small interface.

Token ids in, log-probabilities out. Switching, scoring and generation are written once, per sequence, against these
protocols; batching what many sequences ask for at the same time is the backend's business.

A position counts from the start of a sequence. *Row t* is the next-token distribution after the first t tokens, so it
predicts the token at position t: float32 raw log-probabilities (temperature 1, before any filter), shape `[V]`, cut to
the shared vocabulary before the softmax. There is no row 0: a prompt has at least one token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from rl_onoff.errors import WorkerLost
from rl_onoff.policy import Lead
from workers.costs import PassCosts
from workers.wire import Compare, Frame, Generate, ModelInfo, PairInfo, SamplingParams, SwitchGenerate

Ids = Sequence[int]
Rows = Any  # float32 [n, V], of numpy or of torch on the backend's device

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draft:
    """n tokens and the rows `[n, V]` that predicted them; `gaps` by how much each won, where the drawing told."""

    tokens: list[int]
    rows: Rows
    gaps: list[float] | None = None


class CachedSequence(Protocol):
    """One sequence's place in a model's cache.

    Calls are stateless in meaning: each names all its ids. What the cache already holds of them is not computed again,
    and rolling back is sending a shorter or a different prefix.
    """

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> Rows:
        """Rows `start`..`len(ids)`, both included: `[len(ids) - start + 1, V]`.

        With `logits` the model's own float32 logits instead of log-probabilities. 1 <= start <= len(ids); every id is
        in [0, V). Costs one forward pass over the tokens not yet cached (more for a long uncached prefix).
        """
        ...

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        """The model's own next `count` tokens after `ids`, with the rows they were drawn from.

        Fewer when one of `eos` is drawn: it is the last. Token for token the same as drawing from `rows` one by one.
        """
        ...

    @property
    def forwards(self) -> int:
        """Forward passes this sequence took part in."""
        ...


@asynccontextmanager
async def both_sequences(pair: Pair, swapped: bool = False) -> AsyncIterator[tuple[CachedSequence, CachedSequence]]:
    """A place in either model's cache, for the models that play A and B.

    Taken in the pair's own order whatever the roles: two jobs that each hold what the other waits for would wait for
    ever.
    """
    async with pair.a.sequence() as first, pair.b.sequence() as second:
        yield (second, first) if swapped else (first, second)


async def together(first: Coroutine[Any, Any, Rows], second: Coroutine[Any, Any, Rows]) -> tuple[Rows, Rows]:
    """Both results; when one call fails the other is cancelled before its sequence is given back."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class LanguageModel(Protocol):
    """One loaded model. Knows token ids, never text."""

    @property
    def info(self) -> ModelInfo: ...

    def sequence(self) -> AbstractAsyncContextManager[CachedSequence]:
        """A place in the cache, waited for if all are taken, given back (not erased) on exit."""
        ...


class Pair(Protocol):
    """Two models whose rows meet on one device."""

    @property
    def info(self) -> PairInfo: ...

    @property
    def a(self) -> LanguageModel: ...

    @property
    def b(self) -> LanguageModel: ...

    @property
    def steps(self) -> int:
        """Forward passes so far: moves while the models work, so that a watcher can tell busy from hung."""
        ...

    @property
    def pass_costs(self) -> Mapping[Lead, PassCosts] | None:
        """What the forward passes of either model cost, where the backend has measured it."""
        ...

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Run array work where and when it does not disturb the models or the event loop."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class GeneratesItself(Protocol):
    """A pair whose engine samples a whole continuation as one request: `workers.generation`, frame by frame the same.

    For engines to which a call for every token's row would cost more than the row.
    """

    def generate(self, job: Generate) -> AsyncIterator[Frame]: ...


@runtime_checkable
class SwitchesItself(Protocol):
    """A pair whose engine takes over switched generation: the tokens, leads and values of `workers.lockstep`."""

    def switch_generate(self, job: SwitchGenerate) -> AsyncIterator[Frame]:
        """As `workers.lookahead.switch_generate`."""
        ...


def bulk(function: Callable[P, T]) -> Callable[P, T]:
    """Mark what may take long and no next token waits for: a pair computes one such thing at a time, between passes."""
    function.bulk = True  # type: ignore[attr-defined]
    return function


def is_bulk(function: Callable[..., Any]) -> bool:
    return getattr(function, "bulk", False)


@runtime_checkable
class LivesElsewhere(Protocol):
    """A pair whose engine runs in processes of its own, which may end before the worker does."""

    async def until_lost(self) -> WorkerLost:
        """Why the models are gone, once they are: the worker ends too. Calls under way raise the same."""
        ...


@runtime_checkable
class ComparesItself(Protocol):
    """A pair that answers a `Compare` job better than through its rows, whose memory is that of the vocabulary."""

    def compare(self, job: Compare) -> AsyncIterator[Frame]:
        """As `workers.scoring.compare`."""
        ...
