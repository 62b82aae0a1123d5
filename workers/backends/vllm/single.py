"""A pair in one engine: A is its draft model, B its target, and a pass brings what a round of lookahead does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Any

import msgspec
import torch

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import PolicyState, initial_state, state_after
from workers import lockstep
from workers.backends.base import Draft, Ids
from workers.backends.vllm.calls import Answer
from workers.backends.vllm.engine import Driver
from workers.backends.vllm.extension import Switch, Wish
from workers.backends.vllm.model import VLLMModel, VLLMSequence
from workers.backends.vllm.pair import VLLMPair
from workers.sampling import choose
from workers.wire import Done, Frame, Generate, ModelInfo, PairInfo, SamplingParams, SwitchGenerate, Tokens, Usage


class SingleModel(VLLMModel):
    """One of the two models of an engine. Every pass runs both."""

    def __init__(self, engine: Any, info: ModelInfo, driver: Driver, sequences: int, *, drafter: bool) -> None:
        super().__init__(engine, info, driver, sequences)
        self.drafter = drafter

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[VLLMSequence]:
        async with super().sequence():
            yield SingleSequence(self)


class SingleSequence(VLLMSequence):
    _model: SingleModel

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> torch.Tensor:
        answer = await self._model.ask(ids, Wish(start=start, logits=logits, drafter=self._model.drafter))
        self.forwards += answer.passes
        rows: torch.Tensor = answer.rows
        return rows

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        """A request a token: what needs drafts, switching and generation, the engine does itself."""
        text, rows = list(ids), []
        while len(text) < len(ids) + count and (len(text) == len(ids) or text[-1] not in eos):
            rows.append(await self.rows(text, len(text)))
            text += choose(rows[-1], params, [len(text)])
        return Draft(text[len(ids) :], torch.cat(rows))


class SinglePair(VLLMPair):
    def __init__(
        self, info: PairInfo, driver: Driver, a: VLLMModel, b: VLLMModel, *, sequences: int, drafted: int
    ) -> None:
        super().__init__(info, driver, a, b)
        self._drafted = drafted
        self._switching = asyncio.Semaphore(sequences)

    async def generate(self, job: Generate) -> AsyncIterator[Frame]:
        """As `workers.generation.generate`, in frames of several tokens: one model leads throughout."""
        eos = frozenset() if job.ignore_eos else frozenset((self.info.a if job.side == "a" else self.info.b).eos_ids)
        switch = SwitchGenerate(
            job.ids, job.max_tokens, job.sampling, {"kind": f"always_{job.side}"}, logprobs=job.logprobs
        )
        async with aclosing(self._switched(switch, eos)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                usage = frame.usage  # type: ignore[union-attr]
                usage = Usage(a_forwards=usage.a_forwards, b_forwards=usage.b_forwards)
                changes = {"leads": "", "values": {}} if isinstance(frame, Tokens) else {}
                yield msgspec.structs.replace(frame, usage=usage, **changes)

    def switch_generate(self, job: SwitchGenerate) -> AsyncIterator[Frame]:
        """As `workers.lookahead.switch_generate`. Always A drafts, at most `draft_tokens` however long `lookahead`."""
        eos = frozenset() if job.ignore_eos else frozenset({*self.info.a.eos_ids, *self.info.b.eos_ids})
        return self._switched(job, eos)

    async def _switched(self, job: SwitchGenerate, eos: frozenset[int]) -> AsyncIterator[Frame]:
        policy = parse_policy(job.policy)
        state = PolicyState(**job.state) if job.state else initial_state(policy)
        ids, end = list(job.ids), len(job.ids) + job.max_tokens
        usage = Usage()
        # No draft may reach beyond the context; and what vLLM did not judge is not sent again as it is.
        last, stuck = self.b.info.max_len - self._drafted - 2, False
        while len(ids) < end:
            before, begin = usage, len(ids)
            by_rows = stuck or begin == 1 or begin >= last
            most = 1 if by_rows else min(end, last) - begin
            rest = msgspec.structs.replace(job, ids=ids.copy(), max_tokens=most, state=asdict(state))
            async with aclosing(self._step(rest) if by_rows else self._rounds(rest, eos)) as frames:  # type: ignore[type-var]
                async for frame in frames:
                    usage = _sum(before, frame.usage)
                    ids += frame.ids
                    state = state_after(policy, frame.leads, state)  # type: ignore[arg-type]
                    yield msgspec.structs.replace(frame, usage=usage)
                    if ids[-1] in eos:
                        yield Done(usage, "stop")
                        return
            stuck = len(ids) == begin
        yield Done(usage, "length")

    async def _step(self, job: SwitchGenerate) -> AsyncIterator[Tokens]:
        """One token, as lock-step takes it."""
        job = msgspec.structs.replace(job, ignore_eos=True)
        async with aclosing(lockstep.switch_generate(self, job)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                if isinstance(frame, Tokens):
                    yield frame

    async def _rounds(self, job: SwitchGenerate, eos: frozenset[int]) -> AsyncIterator[Tokens]:
        """The frames of one request to the engine, which may end early."""
        switch = Switch(
            job.ids[-1],
            job.max_tokens,
            job.sampling,
            job.policy,
            job.measures,
            sorted(eos),
            job.lookahead,
            job.swapped,
            job.state or {},
            job.logprobs,
            self.info.noise,
        )
        usage = Usage()
        stream = self.b.stream(job.ids[:-1], Wish(news=True, switch=switch), job.max_tokens + 1, eos)
        async with self._switching, aclosing(stream) as news:
            async for new in news:
                if isinstance(new, Answer):
                    return
                for told in new.rounds:
                    usage = Usage(
                        *((told.b_passes, told.a_passes) if job.swapped else (told.a_passes, told.b_passes)),
                        usage.drafted + told.drafted,
                        usage.accepted + len(told.ids) - (not told.survived),
                        usage.rounds + 1,
                        usage.within_noise + told.doubtful,
                    )
                    yield Tokens(
                        told.ids, usage, told.leads, told.values, told.logprobs, told.top_ids, told.top_logprobs
                    )


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(*(getattr(one, name) + getattr(other, name) for name in Usage.__struct_fields__))
