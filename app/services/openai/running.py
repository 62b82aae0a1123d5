"""A request of the OpenAI routes as running generations: one per choice, of a model or of a pair."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel

from app.config import Limits
from app.services.detokenize import Piece
from app.services.gate import Ticket, cost
from app.services.generation import Generation, total_usage
from app.services.ids import new_id
from app.services.interleave import interleave
from app.services.json_parts import pieces
from app.services.openai.answers import SwitchSummary, Usage
from app.services.openai.loglikelihood import Loglikelihood, loglikelihood, scoring_job
from app.services.openai.names import Switched, Target
from app.services.openai.requests import OpenAIRequest
from app.services.prompts import within
from app.services.text import Codec
from app.services.worker import LoadedPair
from rl_onoff.philox import derive_seed
from rl_onoff.policy import Lead, first_lead
from rl_onoff.schemas import FinishReason, Switch
from workers.wire import Generate, SamplingParams, SwitchGenerate

#: What one log-probability in an answer costs, in memory and as JSON, about.
_ENTRY_BYTES = 48


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: list[int]
    text: str  # for echo
    max_tokens: int


@dataclass(slots=True)
class Choice:
    """One completion of one prompt. `generation` is None where no token was asked for."""

    index: int
    prompt: Prompt
    seed: int
    generation: Generation | None
    scored: Loglikelihood | None = None
    lengths: list[int] = field(default_factory=list)  # of the tokens' texts, so far

    @property
    def text(self) -> str:
        return self.generation.text if self.generation is not None else ""

    @property
    def finish_reason(self) -> FinishReason:
        return self.generation.finish_reason if self.generation is not None else "length"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an OpenAI stream."""

    name: Literal["token", "done"]
    body: BaseModel | None
    long: bool = False

    def encode(self) -> bytes:
        """`[DONE]` ends a stream."""
        if self.body is None:
            return b"data: [DONE]\n\n"
        return f"data: {self.body.model_dump_json(by_alias=True, exclude_unset=True, ensure_ascii=True)}\n\n".encode()

    def pieces(self) -> Iterator[bytes]:
        if self.body is None:
            yield self.encode()
            return
        yield b"data: "
        yield from pieces(self.body, exclude_unset=True, ensure_ascii=True)
        yield b"\n\n"


#: A choice begins (its prompt has been scored, where that was asked for), gets a token, and ends.
Moment = Literal["begin", "end"] | Piece


class Running:
    """What both routes need of one request. Once `events` have come to their end all choices are whole."""

    def __init__(
        self,
        kind: str,
        request: OpenAIRequest,
        target: Target,
        prompts: list[Prompt],
        limits: Limits,
        *,
        logprobs: int | None,
        score_prompts: bool,
    ) -> None:
        self.head: dict[str, Any] = {"id": new_id(kind), "created": int(time.time()), "model": request.model}
        self.target = target
        self._request = request
        self._logprobs = logprobs
        self._score_prompts = score_prompts
        self._check(prompts, limits)
        self.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        seed = secrets.randbits(53) if request.seed is None else request.seed
        self.choices = [
            self._choice(p * request.n + i, prompt, derive_seed(seed, p, i))
            for p, prompt in enumerate(prompts)
            for i in range(request.n)
        ]

    @property
    def pair(self) -> LoadedPair:
        return pair_of(self.target)

    @property
    def codec(self) -> Codec:
        return self.pair.codec

    async def events(self) -> AsyncGenerator[tuple[Choice, Moment], None]:
        """What happens to all choices, as it comes."""
        with self.pair.ticket(sum(map(self._cost, self.choices))) as ticket:
            ticket.reserve()
            sources = [partial(self._run, choice, ticket) for choice in self.choices]
            async with aclosing(interleave(sources, at_once=self.pair.config.sequences)) as events:
                async for event in events:
                    yield event

    async def finish(self) -> None:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass

    def usage(self) -> Usage:
        generations = [choice.generation for choice in self.choices if choice.generation is not None]
        total = total_usage(self.prompt_tokens, generations)
        return Usage(
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            total_tokens=total.prompt_tokens + total.completion_tokens,
            a_forwards=total.a_forwards,
            b_forwards=total.b_forwards,
            drafted=total.drafted,
            accepted=total.accepted,
        )

    @property
    def values(self) -> int:
        """How many a whole answer holds, about. Every choice may echo its prompt."""
        written = sum(len(choice.generation.token_ids) for choice in self.choices if choice.generation is not None)
        echoed = sum(len(choice.prompt.ids) for choice in self.choices)
        return (written + echoed) * (2 + (self._logprobs or 0))

    def token(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Our members of one token's chunk."""
        told: dict[str, Any] = {"token_ids": [piece.id]}
        if isinstance(self.target, Switched) and choice.generation is not None:
            value = choice.generation.values[self.target.policy.watched][piece.index]
            told |= {"lead": choice.generation.leads[piece.index], "divergence": value}
        return told

    def whole(self, choice: Choice) -> dict[str, Any]:
        """Our members of a whole choice."""
        generation = choice.generation
        told: dict[str, Any] = {"token_ids": generation.token_ids if generation else [], "seed": choice.seed}
        if isinstance(self.target, Switched) and generation is not None:
            values = generation.values[self.target.policy.watched]
            told |= {"leads": "".join(generation.leads), "divergences": values, **self.summary(choice)}
        return told

    def summary(self, choice: Choice) -> dict[str, Any]:
        """How the pair wrote the choice, if a pair did."""
        generation = choice.generation
        if not isinstance(self.target, Switched) or generation is None:
            return {}
        policy = self.target.policy
        lead: Lead = first_lead(policy)
        switches = []
        for position, now in enumerate(generation.leads):
            if now != lead:
                lead, before = ("b" if now == "b" else "a"), lead
                value = generation.values[policy.watched][position]
                switches.append(Switch(position=position, from_=before, to=lead, value=value))
        by_b = generation.leads.count("b")
        summary = SwitchSummary(
            policy=policy.model_dump(mode="json"),
            measure=policy.watched,
            b_tokens=by_b,
            b_fraction=by_b / len(generation.leads),
            switches=switches,
            decisions_within_noise=generation.usage.within_noise,
        )
        return {"switch": summary}

    def _check(self, prompts: list[Prompt], limits: Limits) -> None:
        within(len(prompts), limits.prompts, "prompt", "prompts")
        within(len(prompts) * self._request.n, limits.samples, "n", "samples")
        if self._logprobs is not None:
            within(self._logprobs, self.codec.vocab_size, "logprobs", "tokens")
            positions = sum(prompt.max_tokens + (len(prompt.ids) if self._score_prompts else 0) for prompt in prompts)
            size = positions * self._request.n * (self._logprobs + 1) * _ENTRY_BYTES
            within(size, limits.row_bytes, "logprobs", "bytes of log-probabilities")

    def _choice(self, index: int, prompt: Prompt, seed: int) -> Choice:
        if prompt.max_tokens == 0:
            return Choice(index, prompt, seed, None)
        request, info = self._request, self.pair.info
        common: dict[str, Any] = {
            "ids": prompt.ids,
            "max_tokens": prompt.max_tokens,
            "sampling": self._params(seed),
            "ignore_eos": request.ignore_eos,
            "logprobs": self._logprobs,
        }
        job: Generate | SwitchGenerate
        if isinstance(self.target, Switched):
            ends = [*info.a.eos_ids, *info.b.eos_ids]
            lookahead = None if request.lookahead == "auto" else request.lookahead
            policy = self.target.policy.model_dump(mode="json")
            job = SwitchGenerate(**common, policy=policy, lookahead=lookahead, swapped=self.target.served.swapped)
        else:
            ends = self.target.info.eos_ids
            job = Generate(**common, side=self.target.side)
        text = self.codec.stream(ends=() if request.ignore_eos else ends, stop=request.stop)
        return Choice(index, prompt, seed, Generation(self.pair, job, text))

    def _params(self, seed: int) -> SamplingParams:
        request = self._request
        return SamplingParams(request.temperature, request.top_k, request.top_p, request.min_p, seed)

    def _cost(self, choice: Choice) -> int:
        own = choice.generation.cost if choice.generation is not None else 0
        if not self._score_prompts:
            return own
        job = scoring_job(self.target, choice.prompt.ids, self._logprobs or 0, self._params(choice.seed))
        return own if job is None else own + cost(job, self.codec.vocab_size)

    async def _run(self, choice: Choice, ticket: Ticket) -> AsyncGenerator[tuple[Choice, Moment], None]:
        if self._score_prompts:
            params = self._params(choice.seed)
            k = self._logprobs or 0
            choice.scored = await loglikelihood(self.target, choice.prompt.ids, k, params, ticket)
        yield choice, "begin"
        if choice.generation is not None:
            async with aclosing(choice.generation.pieces(ticket)) as pieces:
                async for piece in pieces:
                    choice.lengths.append(len(piece.text))
                    yield choice, piece
        yield choice, "end"


def pair_of(target: Target) -> LoadedPair:
    return target.served.pair if isinstance(target, Switched) else target.pair
