"""One running generation, plain or switched: the worker's frames as text, and the record of everything in them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.services import gate
from app.services.detokenize import Piece, TextStream
from app.services.nulls import finites
from app.services.replay import Delivered, Paused, go_on
from app.services.worker import LoadedPair
from rl_onoff.errors import InternalError
from rl_onoff.schemas import FinishReason, Sampling, TopTokens
from rl_onoff.schemas import Usage as UsageOut
from workers.wire import Done, Frame, Generate, SamplingParams, SwitchGenerate, Tokens, Usage


class Generation:
    """Iterate `pieces` to its end; then the record is whole. Lists have one entry per token, or are empty.

    `given` tokens went into `text` before: their pieces are no part of this.
    """

    def __init__(self, pair: LoadedPair, job: Generate | SwitchGenerate, text: TextStream, *, given: int = 0) -> None:
        self.token_ids: list[int] = []
        self.leads: list[str] = []
        self.values: dict[str, list[float | None]] = {}
        self.logprobs: list[float] = []
        self.top: list[TopTokens] = []
        self.usage = Usage()
        self.finish_reason: FinishReason = "length"
        self.tokens: list[str] = []
        self._whole = False
        self._given = given
        self._pair = pair
        self._job = job
        self._stream = text
        self._delivered = Delivered()

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be generated."""
        return self._whole

    @property
    def cost(self) -> int:
        """As `gate.cost`."""
        return gate.cost(self._job, self._pair.info.a.vocab_size)

    async def pieces(self, ticket: gate.Ticket) -> AsyncGenerator[Piece, None]:
        """Every token with its text, as soon as that is certain. Ends the worker's job at a stop string."""
        async with aclosing(self.progress(ticket)) as progress:
            async for piece in progress:
                if isinstance(piece, Piece):
                    yield piece

    async def progress(self, ticket: gate.Ticket, start: int = 0) -> AsyncGenerator[Piece | Paused, None]:
        """The pieces from token `start` on, and the moments from which on a worker is awaited.

        What is closed may be iterated again, from any token: what is known is told from the record, and the work goes
        on at the token where it was ended. Not twice at the same time.
        """
        while start < len(self.tokens):
            yield Piece(start, self.token_ids[start], self.tokens[start])
            start += 1
        if self._whole:
            return
        async with (
            ticket.turn(self.cost),
            aclosing(go_on(self._pair, self._job, self._delivered)) as frames,
        ):
            async for frame in frames:
                if isinstance(frame, Paused):
                    yield frame
                    continue
                self._take(frame)  # whole, before anything is given out: who stops here may come back
                while start < len(self.tokens):
                    yield Piece(start, self.token_ids[start], self.tokens[start])
                    start += 1
                if self._whole:
                    return

    def _take(self, frame: Frame) -> None:
        if not isinstance(frame, Tokens | Done):
            raise InternalError("the worker answered a generation with something else")
        self.usage = frame.usage
        if isinstance(frame, Done):
            self._whole = True
            self._own(self._stream.finish())
            self.finish_reason = "stop" if self._stream.stopped else frame.finish_reason or "length"
            return
        for index in range(len(frame.ids)):
            self._record(frame, index)
            self._own(self._stream.push(frame.ids[index]))
            if self._stream.stopped:
                self._whole = True
                self.finish_reason = "stop"
                return

    def _own(self, pieces: list[Piece]) -> None:
        self.tokens += [piece.text for piece in pieces if piece.index >= self._given]

    def _record(self, frame: Tokens, index: int) -> None:
        self.token_ids.append(frame.ids[index])
        if frame.leads:
            self.leads.append(frame.leads[index])
        for name, column in frame.values.items():
            self.values.setdefault(name, []).extend(finites(column[index : index + 1]))
        if frame.logprobs:
            self.logprobs.append(frame.logprobs[index])
        if frame.top_ids:
            self.top.append(TopTokens(ids=frame.top_ids[index], values=finites(frame.top_logprobs[index])))


def drawn_seed(sampling: Sampling) -> int:
    """The request's seed, or a new one that survives JSON in every language."""
    return secrets.randbits(53) if sampling.seed is None else sampling.seed


def sampling_params(sampling: Sampling, seed: int) -> SamplingParams:
    return SamplingParams(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, seed)


def total_usage(prompt_tokens: int, generations: list[Generation]) -> UsageOut:
    accepted = sum(generation.usage.accepted for generation in generations)
    rounds = sum(generation.usage.rounds for generation in generations)
    return UsageOut(
        prompt_tokens=prompt_tokens,
        completion_tokens=sum(len(generation.token_ids) for generation in generations),
        a_forwards=sum(generation.usage.a_forwards for generation in generations),
        b_forwards=sum(generation.usage.b_forwards for generation in generations),
        drafted=sum(generation.usage.drafted for generation in generations),
        accepted=accepted,
        rounds=rounds,
        mean_accepted=accepted / rounds if rounds else None,
    )
