"""Log-probabilities of a given text, under a model or under a pair that switches.

A model's are teacher-forced. A pair's: the policy walks over the text from its second token on, in its initial state
before that, with the signals both models give after every prefix, exactly as if they had written it. Each token has the
log-probability that the model which leads there gives it. The first token has none, since nothing precedes it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from app.services import replay
from app.services.gate import Ticket
from app.services.nulls import finites
from app.services.openai.names import Switched, Target
from app.services.registry import ServedModel
from rl_onoff.errors import InternalError
from workers.wire import Frame, Job, Rows, SamplingParams, Score, SwitchScore, Walked

#: What OpenAI writes for a token that is as good as impossible: JSON has no -inf.
IMPOSSIBLE = -9999.0

Best = list[tuple[int, float]]


@dataclass(slots=True)
class Loglikelihood:
    """One entry per token of the text but the first. `leads` and `divergences` only for a pair."""

    logprobs: list[float] = field(default_factory=list)
    best: list[Best] = field(default_factory=list)
    leads: str = ""
    divergences: list[float | None] = field(default_factory=list)


def at_least(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def scoring_job(target: Target, ids: list[int], k: int, params: SamplingParams) -> Score | SwitchScore | None:
    """What `loglikelihood` asks of the worker. None where there is nothing to score."""
    if len(ids) < 2:
        return None
    if isinstance(target, Switched):
        policy = target.policy.model_dump(mode="json")
        return SwitchScore(ids, 1, params, policy, logprobs=k, swapped=target.served.swapped)
    return Score(side=target.side, ids=ids, start=1, top_k=max(k, 1))


async def loglikelihood(
    target: Target, ids: list[int], k: int, params: SamplingParams, ticket: Ticket
) -> Loglikelihood:
    """With the k most likely tokens of every position; `params` are those of the signals that depend on samples."""
    job = scoring_job(target, ids, k, params)
    if job is None:
        return Loglikelihood()
    if isinstance(target, Switched):
        scored = await _of_pair(target, job, ticket)
    else:
        scored = await _of_model(target, job, k, ticket)
    if len(scored.logprobs) != len(ids) - 1:
        raise InternalError("the worker scored another number of positions than asked for")
    return scored


async def _of_model(model: ServedModel, job: Job, k: int, ticket: Ticket) -> Loglikelihood:
    scored = Loglikelihood()
    async with aclosing(replay.run(model.pair, job, ticket)) as frames:
        async for frame in frames:
            if isinstance(frame, Rows) and frame.ids is not None:
                scored.logprobs += frame.token_logprobs.numpy().tolist()
                best = zip(frame.ids.numpy().tolist(), frame.values.numpy().tolist(), strict=True)
                scored.best += [list(zip(*row, strict=True))[:k] for row in best]
    return scored


async def _of_pair(target: Switched, job: Job, ticket: Ticket) -> Loglikelihood:
    scored = Loglikelihood()
    frames: AsyncGenerator[Frame, None]
    async with aclosing(replay.run(target.served.pair, job, ticket)) as frames:
        async for frame in frames:
            if isinstance(frame, Walked):
                scored.logprobs += frame.logprobs
                best = zip(frame.top_ids, frame.top_logprobs, strict=True)
                scored.best += [list(zip(*row, strict=True)) for row in best]
                scored.leads += frame.leads
                scored.divergences += finites(frame.values[target.policy.watched])
    return scored
