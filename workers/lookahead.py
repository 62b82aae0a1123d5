"""Switched generation by lookahead: one model drafts, the other judges the whole draft in one forward pass.

A round: the drafter writes n tokens of its own, the other model gives its rows for the same positions, and the policy
walks over them exactly as `workers.lockstep` would. The token emitted at a position is the leader's; while it equals
the drafted one, the next position's rows are those lock-step would have seen, so its decision is lock-step's. At the
first difference the leader's token is emitted and the rest of the draft, whose rows belong to another prefix, is
dropped. By induction over positions tokens, leads and values are lock-step's, whoever drafts and however long.

What n costs and brings decides who drafts and how far (`workers.pace`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import PolicyState, initial_state
from workers.backends.base import Pair, both_sequences
from workers.drafts import walk_draft
from workers.judge import judge
from workers.logprobs import Logprobs, of_leaders
from workers.noise import NoiseFloor
from workers.pace import Paces
from workers.wire import Done, Frame, SwitchGenerate, Tokens, Usage

P = ParamSpec("P")
T = TypeVar("T")


async def switch_generate(pair: Pair, job: SwitchGenerate) -> AsyncIterator[Frame]:
    """As `lockstep.switch_generate`, but a frame holds the tokens of a round."""
    policy = parse_policy(job.policy)
    state = PolicyState(**job.state) if job.state else initial_state(policy)
    measures = policy.signals | {policy.watched, *job.measures}
    eos = frozenset() if job.ignore_eos else frozenset({*pair.info.a.eos_ids, *pair.info.b.eos_ids})
    ids = list(job.ids)
    end = len(ids) + job.max_tokens
    paces = _paces.setdefault(pair, Paces(pair.pass_costs))
    usage = Usage()
    noise = NoiseFloor(pair.info.noise)
    async with both_sequences(pair, job.swapped) as (a, b), paces.running(job) as pace:
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
            drawn = None if draft.gaps is None else (draft.tokens, draft.gaps)
            drawn_a, drawn_b = (drawn, None) if drafter == "a" else (None, drawn)
            verdict, seconds = await pair.compute(
                _timed, judge, rows_a, rows_b, positions, job.sampling, measures, drawn_a, drawn_b
            )
            paces.judged(len(positions), seconds)

            led = state.lead
            round_ = walk_draft(policy, state, draft.tokens, verdict, first, job.sampling.seed, eos, noise)
            state, emitted, leads = round_.state, round_.ids, round_.leads
            ids += emitted
            pace.breaks.walked(led, drafter, len(emitted), round_.survived)
            usage = Usage(
                a.forwards,
                b.forwards,
                usage.drafted + len(draft.tokens),
                usage.accepted + len(emitted) - (not round_.survived),
                usage.rounds + 1,
                usage.within_noise + round_.doubtful,
            )
            told = Logprobs([], [], [])
            if job.logprobs is not None:
                told = await pair.compute(of_leaders, rows_a, rows_b, leads, emitted, job.logprobs)
            yield Tokens(emitted, usage, leads, round_.values, told.tokens, told.top_ids, told.top_logprobs)
            if ids[-1] in eos:
                yield Done(usage, "stop")
                return
    yield Done(usage, "length")


_paces: WeakKeyDictionary[Pair, Paces] = WeakKeyDictionary()


def _timed(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    begin = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - begin
