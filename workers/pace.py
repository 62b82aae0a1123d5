"""Who drafts in lookahead, and how far: what costs least per emitted token, by what was seen so far."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from rl_onoff.policy import Lead
from workers.costs import FittedCosts, PassCosts
from workers.wire import SwitchGenerate

LEADS: Final[tuple[Lead, Lead]] = ("a", "b")
#: Lengths of drafts to choose from.
LENGTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16)


class Breaks:
    """How often drafts break, for requests that switch alike.

    The share of positions at which the token emitted was not the drafted one, for each (leader before the round,
    drafter), as decaying averages over the last tokens of each running request.
    """

    DECAY: Final = 0.97  # a token, of a request alone

    def __init__(self) -> None:
        self.running = 0
        # Before anything was seen: the leader's own drafts break rarely, the other's often.
        self._broken = {(lead, by): 0.15 if lead == by else 0.6 for lead in LEADS for by in LEADS}
        self._seen = dict.fromkeys(self._broken, 3.0)

    def walked(self, lead: Lead, drafter: Lead, emitted: int, survived: bool) -> None:
        """`emitted` tokens of a round's draft, the last of them only as drafted if it `survived`."""
        key = (lead, drafter)
        decay = self.DECAY ** (emitted / max(1, self.running))
        self._broken[key] = self._broken[key] * decay + (not survived)
        self._seen[key] = self._seen[key] * decay + emitted

    def tokens(self, lead: Lead, drafter: Lead, count: int) -> float:
        """Tokens that a draft of `count` brings; its last is emitted even where it breaks there."""
        h = min(0.95, max(1e-6, self._broken[lead, drafter] / self._seen[lead, drafter]))
        return (1 - (1 - h) ** count) / h


@dataclass(slots=True, eq=False)
class Pace:
    """A running request: how far it is to draft next."""

    paces: Paces
    breaks: Breaks
    swapped: bool
    fixed: int | None
    lead: Lead = "a"

    def choose(self, lead: Lead, most: int) -> tuple[Lead, int]:
        """The drafter and its draft's length, `most` at most, for a round that begins in `lead`.

        With a fixed length only A drafts.
        """
        self.lead = lead
        if self.fixed:
            return "a", min(self.fixed, most)
        side, count = self.paces.plan(self)
        return _role(side, self.swapped), min(count, most)

    def timed(self, drafter: Lead, count: int, drafting: float, judging: float) -> None:
        """Seconds that the calls of a round took: used where the backend does not time its passes."""
        side = _role(drafter, self.swapped)
        self.paces.fitted[side].observe(1, drafting / count)
        self.paces.fitted["b" if side == "a" else "a"].observe(count, judging)


class Paces:
    """What the running requests of one pair draft: one plan for all of them.

    Requests whose drafts are equally long and by one model are judged in one pass, and a pass costs much before it
    computes its first token; so the choice is the one that costs all of them together least per emitted token: n passes
    of the drafter over R tokens, one of the other model over R n, and the judging of R n positions. A request alone is
    the case R = 1. `passes` are the costs that the backend has measured; without them each request stands for itself,
    at what its calls take.
    """

    #: Requests that began a round by another plan are out of step: a plan is left only for one cheaper by this factor.
    WORTH: Final = 1.05
    #: Of plans that cost several requests about the same the shortest draft is taken: theirs end at the end of a text,
    #: each at another place, and the longer drafts are, the fewer passes they share there.
    ALIKE: Final = 1.02
    #: Policies whose breaks are remembered.
    KEPT: Final = 64

    def __init__(self, passes: Mapping[Lead, PassCosts] | None) -> None:
        self.fitted: dict[Lead, FittedCosts] = {"a": FittedCosts(), "b": FittedCosts()}
        self._passes = passes
        self._judging = 0.0  # seconds a position
        self._running: list[Pace] = []
        self._last: tuple[Lead, int] | None = None
        self._follow: set[Pace] = set()  # who began a round by it
        self._known: OrderedDict[bytes, Breaks] = OrderedDict()

    @asynccontextmanager
    async def running(self, job: SwitchGenerate) -> AsyncIterator[Pace]:
        """Around a request."""
        pace = Pace(self, self._breaks(job), job.swapped, job.lookahead)
        self._running.append(pace)
        pace.breaks.running += 1
        try:
            yield pace
        finally:
            self._running.remove(pace)
            self._follow.discard(pace)
            pace.breaks.running -= 1

    def judged(self, positions: int, seconds: float) -> None:
        each = seconds / positions
        self._judging = each if self._judging == 0.0 else 0.9 * self._judging + 0.1 * min(each, 4 * self._judging)

    def plan(self, pace: Pace) -> tuple[Lead, int]:
        """The pair's model that drafts, and how far, in the round that a request begins.

        Those that begin theirs together get the same answer: it is thought over when a request asks again.
        """
        if self._last is not None and self._follow and pace not in self._follow:
            self._follow.add(pace)
            return self._last
        self._follow = {pace}
        alike = Counter((pace.breaks, pace.lead, pace.swapped) for pace in self._running)
        choices = {
            (side, n): cost for side in LEADS for n in LENGTHS if (cost := self._cost(side, n, alike)) is not None
        }
        if not choices:
            return _role("a", self._running[0].swapped), 4
        bound = min(choices.values()) * (self.ALIKE if len(self._running) > 1 else 1)
        best = min((choice for choice, cost in choices.items() if cost <= bound), key=lambda choice: choice[1])
        if self._last is None or choices.get(self._last, math.inf) > self.WORTH * choices[best]:
            self._last = best
        return self._last

    def _cost(self, side: Lead, count: int, running: Mapping[tuple[Breaks, Lead, bool], int]) -> float | None:
        """Seconds per emitted token; None while a model's passes are unknown."""
        requests = len(self._running)
        shared = requests if self._passes else 1  # a call that is timed as a whole stands for itself alone
        costs: Mapping[Lead, PassCosts] = self._passes or self.fitted
        draft = costs[side].seconds(shared, 1)
        judge = costs["b" if side == "a" else "a"].seconds(shared, count)
        if draft is None or judge is None:
            return None
        seconds = count * draft + judge + shared * count * self._judging
        tokens = sum(
            alike * breaks.tokens(lead, _role(side, swapped), count)
            for (breaks, lead, swapped), alike in running.items()
        )
        return seconds * requests / (shared * tokens)

    def _breaks(self, job: SwitchGenerate) -> Breaks:
        key = msgspec.json.encode((job.swapped, job.policy, job.sampling.temperature))
        breaks = self._known.pop(key, None) or Breaks()
        self._known[key] = breaks
        if len(self._known) > self.KEPT:
            self._known.popitem(last=False)
        return breaks


def _role(side: Lead, swapped: bool) -> Lead:
    """What the pair's model `side` plays in a request, or which model plays `side`."""
    if not swapped:
        return side
    return "b" if side == "a" else "a"
