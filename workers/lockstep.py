"""Switched generation token by token: the reference every faster way must equal.

At each position both models give their row over the same prefix, the rows are judged, the policy says who leads, and
the leader's token is emitted. Both caches grow by one token a step; no prefix is computed twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import PolicyState, Signals, initial_state, step
from workers.backends.base import Pair, both_sequences, together
from workers.judge import judge
from workers.logprobs import Logprobs, of_leaders
from workers.noise import NoiseFloor
from workers.wire import Done, Frame, SwitchGenerate, Tokens, Usage


async def switch_generate(pair: Pair, job: SwitchGenerate) -> AsyncIterator[Frame]:
    """Frames of one token each, then `Done`. Stops at the end-of-sequence token of either model, once emitted."""
    policy = parse_policy(job.policy)
    state = PolicyState(**job.state) if job.state else initial_state(policy)
    measures = policy.signals | {policy.watched, *job.measures}
    eos = frozenset() if job.ignore_eos else frozenset({*pair.info.a.eos_ids, *pair.info.b.eos_ids})
    ids = list(job.ids)
    usage = Usage()
    noise = NoiseFloor(pair.info.noise)
    async with both_sequences(pair, job.swapped) as (a, b):
        for _ in range(job.max_tokens):
            position = len(ids)
            rows_a, rows_b = await together(a.rows(ids, position), b.rows(ids, position))
            verdict = await pair.compute(judge, rows_a, rows_b, [position], job.sampling, measures)
            known = {name: column[0] for name, column in verdict.values.items()}
            signals = Signals(position, job.sampling.seed, known)
            before, (state, lead) = state, step(policy, state, signals)
            token = verdict.token(0, lead)
            ids.append(token)
            doubtful = noise.doubtful(policy, before, signals, verdict.gaps(0), lead)
            usage = Usage(a.forwards, b.forwards, within_noise=usage.within_noise + doubtful)
            recorded = {name: [value] for name, value in verdict.recorded(0, lead).items()}
            told = Logprobs([], [], [])
            if job.logprobs is not None:
                told = await pair.compute(of_leaders, rows_a, rows_b, lead, [token], job.logprobs)
            yield Tokens([token], usage, lead, recorded, told.tokens, told.top_ids, told.top_logprobs)
            if token in eos:
                yield Done(usage, "stop")
                return
    yield Done(usage, "length")
