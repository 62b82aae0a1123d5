"""Jobs that outlive their worker: what it still owed is asked of its successor, or of another of its pair.

Noise is a function of (seed, position) and a policy's state one of the leads so far, so a generation that goes on after
the tokens already delivered continues as the first worker would have. Rows and measures go on at the next position.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field

import msgspec

from app.services.gate import Ticket, cost
from app.services.worker import LoadedPair
from rl_onoff.errors import WorkerLost, WorkerUnavailable
from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Lead, PolicyState, state_after
from workers.wire import (
    Compare,
    Done,
    Frame,
    Generate,
    Job,
    PairInfo,
    Rows,
    Score,
    SwitchGenerate,
    SwitchScore,
    Tokens,
    Usage,
    Values,
    Walked,
)

#: Deaths in a row, without a frame in between, after which a job may be what kills.
_SUSPICIOUS = 2


class Paused:
    """The worker is gone: what follows will come from its successor."""


async def run(pair: LoadedPair, job: Job, ticket: Ticket) -> AsyncGenerator[Frame, None]:
    """As `Link.run` of the pair's worker with least in hand when the job's turn comes, whatever becomes of workers.

    Raises Overloaded where too much waits already, WorkerLost or WorkerUnavailable when no worker with the same models
    comes back in time, and when nearly as many die over this job, without a frame in between, as would end the service.
    """
    async with (
        ticket.turn(cost(job, pair.info.a.vocab_size)),
        aclosing(go_on(pair, job, Delivered())) as frames,
    ):
        async for frame in frames:
            if not isinstance(frame, Paused):
                yield frame


async def go_on(pair: LoadedPair, job: Job, delivered: Delivered) -> AsyncGenerator[Frame | Paused, None]:
    """The frames of `run` that were not yet `delivered`, which keeps the account: closed and called again with it, it
    goes on where it was. It is for the caller to await the job's turn.

    A job under which workers die one after the other is tried alone among those of which this is true: the one that
    kills them is found out before it has cost the others their lives.
    """
    if pair.link.closed:  # it ended while nobody listened
        yield Paused()
    pair = pair.routed()
    if pair.link.closed:
        pair = await pair.revived()
    rest: Job | Done = delivered.rest(job, pair.info) if delivered.anything else job
    deaths = 0
    async with AsyncExitStack() as alone:
        while not isinstance(rest, Done):
            before = msgspec.structs.asdict(delivered.usage), delivered.positions
            try:
                with pair.in_hand():
                    async with aclosing(pair.link.run(rest)) as frames:
                        async for frame in frames:
                            if deaths:
                                deaths = 0
                                await alone.aclose()
                            yield delivered.add(frame, *before)
                return
            except (WorkerLost, WorkerUnavailable):
                deaths += 1
                if deaths >= pair.worker.most_deaths - 1:  # it may be what kills them: before it ends the service
                    raise
                yield Paused()
            if deaths == _SUSPICIOUS:
                await alone.enter_async_context(pair.worker.replicas.suspects)
            pair = await pair.revived()
            rest = delivered.rest(job, pair.info)
    yield rest


@dataclass(slots=True)
class Delivered:
    """What came of a job's answer so far."""

    ids: list[int] = field(default_factory=list)
    leads: list[Lead] = field(default_factory=list)
    positions: int = 0
    usage: Usage = Usage()  # noqa: RUF009 — frozen

    @property
    def anything(self) -> bool:
        return bool(self.ids or self.leads or self.positions)

    def add(self, frame: Frame, spent: dict[str, int], positions: int) -> Frame:
        """The frame as one worker alone would have sent it: cost and positions counted from the job's beginning."""
        match frame:
            case Tokens() | Walked() | Done():
                own = msgspec.structs.asdict(frame.usage)
                self.usage = Usage(**{name: own[name] + spent[name] for name in own})
                if isinstance(frame, Tokens | Walked):
                    self.leads += ["b" if lead == "b" else "a" for lead in frame.leads]
                if isinstance(frame, Tokens):
                    self.ids += frame.ids
                if isinstance(frame, Walked):
                    return msgspec.structs.replace(frame, usage=self.usage, start=len(self.leads) - len(frame.leads))
                return msgspec.structs.replace(frame, usage=self.usage)
            case Rows() | Values():
                values = frame.token_logprobs if isinstance(frame, Rows) else frame.logprobs_a
                self.positions = positions + frame.start + values.shape[0]
                return msgspec.structs.replace(frame, start=positions + frame.start)
        return frame

    def rest(self, job: Job, info: PairInfo) -> Job | Done:
        """The job for what is still owed, or its end where only that was."""
        match job:
            case Score():
                start = job.start + self.positions
                return msgspec.structs.replace(job, start=start) if start < len(job.ids) else Done(self.usage)
            case SwitchScore():
                start = job.start + len(self.leads)
                first = PolicyState(**job.state) if job.state else None
                state = asdict(state_after(parse_policy(job.policy), self.leads, first))
                changed = msgspec.structs.replace(job, start=start, state=state)
                return changed if start < len(job.ids) else Done(self.usage)
            case Compare():
                starts = {"a_start": job.a_start + self.positions, "b_start": job.b_start + self.positions}
                left = len(job.a_ids) - starts["a_start"]
                return msgspec.structs.replace(job, **starts) if left else Done(self.usage)
            case Generate():
                ends = info.a.eos_ids if job.side == "a" else info.b.eos_ids
                changes = {}
            case SwitchGenerate():
                ends = [*info.a.eos_ids, *info.b.eos_ids]
                first = PolicyState(**job.state) if job.state else None
                changes = {"state": asdict(state_after(parse_policy(job.policy), self.leads, first))}
        if self.ids and self.ids[-1] in ends and not job.ignore_eos:
            return Done(self.usage, "stop")
        if len(self.ids) == job.max_tokens:
            return Done(self.usage, "length")
        owed = job.max_tokens - len(self.ids)
        return msgspec.structs.replace(job, ids=[*job.ids, *self.ids], max_tokens=owed, **changes)
