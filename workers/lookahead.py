"""Switched generation by lookahead: one model drafts, the other judges the whole draft in one forward pass.

A round: the drafter writes n tokens of its own, the other model gives its rows for the same positions, and the policy
walks over them exactly as `workers.lockstep` would. The token emitted at a position is the leader's; while it equals
the drafted one, the next position's rows are those lock-step would have seen, so its decision is lock-step's. At the
first difference the leader's token is emitted and the rest of the draft, whose rows belong to another prefix, is
dropped. By induction over positions tokens, leads and values are lock-step's, whoever drafts and however long.

What n costs and brings decides who drafts and how far (`Pace`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Lead, PolicyState, Signals, initial_state, step
from workers.backends.base import Pair, both_sequences
from workers.judge import judge
from workers.noise import NoiseFloor
from workers.wire import Done, Frame, SwitchGenerate, Tokens, Usage

LENGTHS = (1, 2, 3, 4, 6, 8)


async def switch_generate(pair: Pair, job: SwitchGenerate) -> AsyncIterator[Frame]:
    """As `lockstep.switch_generate`, but a frame holds the tokens of a round."""
    policy = parse_policy(job.policy)
    state = PolicyState(**job.state) if job.state else initial_state(policy)
    measures = policy.signals | {policy.watched, *job.measures}
    eos = frozenset() if job.ignore_eos else frozenset({*pair.info.a.eos_ids, *pair.info.b.eos_ids})
    ids = list(job.ids)
    end = len(ids) + job.max_tokens
    pace = Pace(job.lookahead) if job.lookahead else _shared_pace(pair)
    usage = Usage()
    noise = NoiseFloor(pair.info.noise)
    async with both_sequences(pair, job.swapped) as (a, b):
        sides = {"a": a, "b": b}
        while len(ids) < end:
            drafter, count = pace.choose(state.lead, end - len(ids))
            begin = time.perf_counter()
            draft = await sides[drafter].draft(ids, count, job.sampling, eos)
            middle = time.perf_counter()
            other = await sides["b" if drafter == "a" else "a"].rows([*ids, *draft.tokens[:-1]], len(ids))
            pace.timed(drafter, len(draft.tokens), middle - begin, time.perf_counter() - middle)
            rows_a, rows_b = (draft.rows, other) if drafter == "a" else (other, draft.rows)
            first = len(ids)
            positions = range(first, first + len(draft.tokens))
            verdict = await pair.compute(judge, rows_a, rows_b, positions, job.sampling, measures)

            led, leads, doubtful = state.lead, "", 0
            recorded: dict[str, list[float]] = defaultdict(list)
            for i, drafted in enumerate(draft.tokens):
                known = {name: column[i] for name, column in verdict.values.items()}
                signals = Signals(first + i, job.sampling.seed, known)
                before, (state, lead) = state, step(policy, state, signals)
                doubtful += noise.may_turn(policy, before, signals) or noise.may_change(verdict.gap(i, lead))
                ids.append(verdict.token(i, lead))
                leads += lead
                for name, value in verdict.recorded(i, lead).items():
                    recorded[name].append(value)
                if ids[-1] != drafted or ids[-1] in eos:
                    break
            emitted = ids[first:]
            survived = ids[-1] == draft.tokens[len(emitted) - 1]
            pace.walked(led, drafter, len(emitted), survived)
            usage = Usage(
                a.forwards,
                b.forwards,
                usage.drafted + len(draft.tokens),
                usage.accepted + len(emitted) - (not survived),
                usage.rounds + 1,
                usage.within_noise + doubtful,
            )
            yield Tokens(emitted, usage, leads=leads, values=recorded)
            if ids[-1] in eos:
                yield Done(usage, "stop")
                return
    yield Done(usage, "length")


_paces: WeakKeyDictionary[Pair, Pace] = WeakKeyDictionary()


def _shared_pace(pair: Pair) -> Pace:
    """One for all requests of a pair: those that run together then draft alike, and their passes stay together."""
    if pair not in _paces:
        _paces[pair] = Pace(None)
    return _paces[pair]


class Pace:
    """Who drafts and how far: the choice that costs least per emitted token, by what was seen so far.

    With h the share of positions at which a draft breaks, a draft of n brings (1 - (1-h)^n) / h tokens and costs n
    single passes of the drafter and one of n tokens of the other. Break rates are kept for each (leader before the
    round, drafter), pass times for each model, both as decaying averages. With a `fixed` length only A drafts.
    """

    DECAY = 0.9
    SLOPE = 0.03  # a pass of n tokens costs 1 + SLOPE (n - 1) of a pass of one, until seen otherwise

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        # Before anything was seen: the leader's own drafts break rarely, the other's often.
        self._breaks = {(lead, by): 0.15 if lead == by else 0.6 for lead in "ab" for by in "ab"}
        self._seen = dict.fromkeys(self._breaks, 3.0)
        self._pass: dict[str, float] = {}

    def choose(self, lead: Lead, most: int) -> tuple[Lead, int]:
        if self._fixed:
            return "a", min(self._fixed, most)
        if len(self._pass) < 2:
            return "a", min(4, most)
        drafters: tuple[Lead, ...] = ("a",) if lead == "a" else ("a", "b")
        _, drafter, count = min(
            (self._cost(lead, by, n), by, n) for by in drafters for n in LENGTHS if n <= most or n == 1
        )
        return drafter, count

    def timed(self, drafter: Lead, count: int, drafting: float, judging: float) -> None:
        other = "b" if drafter == "a" else "a"
        for side, seconds in ((drafter, drafting / count), (other, judging / (1 + self.SLOPE * (count - 1)))):
            known = self._pass.get(side, seconds)
            self._pass[side] = min(known * 0.8 + seconds * 0.2, 4 * known)

    def walked(self, lead: Lead, drafter: Lead, emitted: int, survived: bool) -> None:
        key = (lead, drafter)
        decay = self.DECAY**emitted
        self._breaks[key] = self._breaks[key] * decay + (not survived)
        self._seen[key] = self._seen[key] * decay + emitted

    def _cost(self, lead: Lead, drafter: Lead, count: int) -> float:
        other = "b" if drafter == "a" else "a"
        h = min(0.95, max(1e-6, self._breaks[lead, drafter] / self._seen[lead, drafter]))
        tokens = (1 - (1 - h) ** count) / h
        return (count * self._pass[drafter] + self._pass[other] * (1 + self.SLOPE * (count - 1))) / tokens
