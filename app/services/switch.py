"""`/switch-generate`: the pair writes together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass

from app.services.events import BEGINNING, Event, Place
from app.services.generation import Generation, drawn_seed, sampling_params, total_usage
from app.services.ids import new_id
from app.services.prompts import prompt_ids, tokens_to_generate
from app.services.registry import Registry, ServedPair
from app.services.replay import Paused
from rl_onoff.errors import InvalidField
from rl_onoff.policy import Lead, first_lead, state_after
from rl_onoff.schemas import Receipt, Switch, SwitchRequest, SwitchResponse, SwitchToken
from rl_onoff.version import __version__
from workers.wire import SwitchGenerate


async def prepare(request: SwitchRequest, registry: Registry) -> SwitchRun:
    """Check everything that can be checked; the run's events are the work."""
    served = registry.pair(request.a, request.b)
    codec = served.pair.codec
    ids = await prompt_ids(request, codec, codec.template_side(served.side_a))
    given = [] if request.given is None else codec.ids(request.given.token_ids, "given.token_ids")
    max_tokens = tokens_to_generate(request.sampling, codec, len(ids) + len(given), "sampling.max_tokens")
    settled = {"seed": drawn_seed(request.sampling), "max_tokens": max_tokens}
    request = request.model_copy(update={"sampling": request.sampling.model_copy(update=settled)})
    return SwitchRun(request, served, ids, _generation(request, served, ids, given))


@dataclass(frozen=True, slots=True)
class SwitchRun:
    """A text and how far it has come. Its events can be had again from any one on; not twice at the same time."""

    request: SwitchRequest
    served: ServedPair
    ids: list[int]
    generation: Generation

    async def events(self, after: Place = BEGINNING) -> AsyncGenerator[Event, None]:
        """What follows `after`. Raises InvalidField where the text ends before."""
        generation = self.generation
        values = generation.values.setdefault(self.request.policy.watched, [])
        first = after.token
        with self.served.pair.ticket(0 if generation.whole else generation.cost) as ticket:
            ticket.reserve()
            async with aclosing(generation.progress(ticket, first)) as progress:
                async for piece in progress:
                    if isinstance(piece, Paused):
                        yield Event("comment", "the worker is gone; its successor goes on from here")
                        continue
                    index, lead = piece.index, _lead(generation.leads[piece.index])
                    if lead != self._lead_before(index) and not (index == first and after.switched):
                        yield Event("switch", self._switch(index), Place(index, switched=True).id)
                    token = SwitchToken(index=index, id=piece.id, text=piece.text, lead=lead, divergence=values[index])
                    yield Event("token", token, Place(index + 1).id)
        if first > len(generation.tokens) or (after.switched and first == len(generation.tokens)):
            raise InvalidField(f"the text has {len(generation.tokens)} tokens", field="Last-Event-ID")
        yield Event("done", _response(self.request, self.served, self.ids, generation, self._switches()))

    def _lead_before(self, index: int) -> Lead:
        if index > 0:
            return _lead(self.generation.leads[index - 1])
        given = self.request.given
        return first_lead(self.request.policy) if given is None else _lead(given.leads[-1])

    def _switch(self, index: int) -> Switch:
        value = self.generation.values[self.request.policy.watched][index]
        before, now = self._lead_before(index), _lead(self.generation.leads[index])
        return Switch(position=index, from_=before, to=now, value=value)

    def _switches(self) -> list[Switch]:
        leads = self.generation.leads
        return [self._switch(index) for index, lead in enumerate(leads) if lead != self._lead_before(index)]


def _generation(request: SwitchRequest, served: ServedPair, ids: list[int], given: list[int]) -> Generation:
    sampling = request.sampling
    info = served.pair.info
    state = None if request.given is None else state_after(request.policy, map(_lead, request.given.leads))
    job = SwitchGenerate(
        ids=[*ids, *given],
        max_tokens=sampling.max_tokens,
        sampling=sampling_params(sampling, sampling.seed or 0),
        policy=request.policy.model_dump(mode="json"),
        measures=list(request.measures),
        ignore_eos=sampling.ignore_eos,
        lookahead=None if request.lookahead == "auto" else request.lookahead,
        swapped=served.swapped,
        state=None if state is None else asdict(state),
    )
    ends = () if sampling.ignore_eos else (*info.a.eos_ids, *info.b.eos_ids)
    stream = served.pair.codec.stream(ends=ends, stop=sampling.stop)
    for index, token in enumerate(given):
        stream.push(token)
        if token in ends or stream.stopped:
            reason = "an end-of-sequence token" if token in ends else "a stop string"
            raise InvalidField(f"nothing can follow: {reason} ends here", field=f"given.token_ids.{index}")
    return Generation(served.pair, job, stream, given=len(given))


def _lead(letter: str) -> Lead:
    return "a" if letter == "a" else "b"


def _response(
    request: SwitchRequest, served: ServedPair, ids: list[int], generation: Generation, switches: list[Switch]
) -> SwitchResponse:
    a, b = served.infos
    return SwitchResponse(
        id=new_id("switch"),
        a=served.names[0],
        b=served.names[1],
        text=generation.text,
        token_ids=generation.token_ids,
        tokens=generation.tokens,
        leads="".join(generation.leads),
        divergences=generation.values[request.policy.watched],
        measure=request.policy.watched,
        signals={name: generation.values[name] for name in request.measures},
        switches=switches,
        b_fraction=generation.leads.count("b") / len(generation.leads),
        finish_reason=generation.finish_reason,
        seed=request.sampling.seed or 0,
        decisions_within_noise=generation.usage.within_noise,
        usage=total_usage(len(ids) + (0 if request.given is None else len(request.given.token_ids)), [generation]),
        receipt=Receipt(
            version=__version__,
            a=served.names[0],
            b=served.names[1],
            a_fingerprint=a.fingerprint,
            b_fingerprint=b.fingerprint,
            prompt_ids=ids,
            given=request.given,
            policy=request.policy,
            sampling=request.sampling,
        ),
    )
