"""A policy's walk over given text: who would lead at each token, and what the leader thinks of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import PolicyState, Signals, initial_state, step
from workers.backends.base import Pair, both_sequences, together
from workers.judge import judge
from workers.logprobs import of_leaders
from workers.scoring import positions_per_chunk
from workers.wire import Done, Frame, SwitchScore, Usage, Walked


async def walk(pair: Pair, job: SwitchScore) -> AsyncIterator[Frame]:
    """`Walked` of consecutive positions, then `Done`: `workers.lockstep` with every token given."""
    policy = parse_policy(job.policy)
    state = PolicyState(**job.state) if job.state else initial_state(policy)
    signals = policy.signals | {policy.watched}
    size = positions_per_chunk(pair.info.a.vocab_size)
    usage = Usage()
    async with both_sequences(pair, job.swapped) as (a, b):
        for begin in range(job.start, len(job.ids), size):
            given = job.ids[begin : begin + size]
            ids = job.ids[: begin + len(given) - 1]
            rows_a, rows_b = await together(a.rows(ids, begin), b.rows(ids, begin))
            positions = range(begin, begin + len(given))
            verdict = await pair.compute(judge, rows_a, rows_b, positions, job.sampling, signals)
            leads = ""
            recorded: dict[str, list[float]] = defaultdict(list)
            for i, position in enumerate(positions):
                known = {name: column[i] for name, column in verdict.values.items()}
                state, lead = step(policy, state, Signals(position, job.sampling.seed, known))
                leads += lead
                for name, value in verdict.recorded(i, lead).items():
                    recorded[name].append(value)
            told = await pair.compute(of_leaders, rows_a, rows_b, leads, given, job.logprobs)
            usage = Usage(a.forwards, b.forwards)
            start = begin - job.start
            yield Walked(start, leads, recorded, told.tokens, told.top_ids, told.top_logprobs, usage)
    yield Done(usage)
