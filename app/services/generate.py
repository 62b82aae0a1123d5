"""`/generate`: samples of one model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from app.config import Limits
from app.services.events import Event
from app.services.gate import Ticket
from app.services.generation import Generation, drawn_seed, sampling_params, total_usage
from app.services.ids import new_id
from app.services.interleave import interleave
from app.services.nulls import finite, finites
from app.services.prompts import prompt_ids, tokens_to_generate, within
from app.services.registry import Registry, ServedModel
from app.services.scoring import Metrics, Written
from rl_onoff.philox import derive_seed
from rl_onoff.schemas import Generated, GenerateRequest, GenerateResponse, GenerateToken, TokenLogprobs
from workers.wire import Generate

#: What one log-probability in an answer costs, in memory and as JSON, about.
_ENTRY_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Sample:
    prompt_index: int
    index: int
    seed: int
    ids: list[int]
    max_tokens: int


async def start(request: GenerateRequest, registry: Registry, limits: Limits) -> AsyncGenerator[Event, None]:
    """Check everything that can be checked; the events that follow are the work."""
    model = registry.model(request.model)
    codec, sampling = model.pair.codec, request.sampling
    if request.prompts is not None:
        within(len(request.prompts), limits.prompts, "prompts", "prompts")
        prompts = [await codec.prompt(text, f"prompts.{i}") for i, text in enumerate(request.prompts)]
    else:
        prompts = [await prompt_ids(request, codec, model.side)]
    within(len(prompts) * sampling.n, limits.samples, "sampling.n", "samples")
    seed = drawn_seed(sampling)
    samples: list[_Sample] = []
    for prompt_index, ids in enumerate(prompts):
        max_tokens = tokens_to_generate(sampling, codec, len(ids), "sampling.max_tokens")
        samples += [
            _Sample(prompt_index, index, derive_seed(seed, prompt_index, index), ids, max_tokens)
            for index in range(sampling.n)
        ]
    if request.logprobs is not None:
        within(request.logprobs, codec.vocab_size, "logprobs", "tokens")
        entries = sum(sample.max_tokens for sample in samples) * (request.logprobs + 1)
        within(entries * _ENTRY_BYTES, limits.row_bytes, "logprobs", "bytes of log-probabilities")
    metrics = await Metrics.of(request, limits)
    metrics.check([sample.max_tokens for sample in samples if sample.index == 0])
    return _events(request, model, samples, sum(map(len, prompts)), metrics)


async def _events(
    request: GenerateRequest, model: ServedModel, samples: list[_Sample], prompt_tokens: int, metrics: Metrics
) -> AsyncGenerator[Event, None]:
    generations = [_generation(request, model, sample) for sample in samples]
    with model.pair.ticket(sum(generation.cost for generation in generations)) as ticket:
        ticket.reserve()
        pairs = list(zip(samples, generations, strict=True))
        sources = [partial(_tokens, sample, generation, ticket) for sample, generation in pairs]
        count = 0
        async with aclosing(interleave(sources, at_once=model.pair.config.sequences)) as tokens:
            async for token in tokens:
                yield Event("token", token, count)
                count += 1
    written = [Written(sample.prompt_index, each.text, each.logprobs) for sample, each in pairs]
    scores, overall = await metrics.scores(written)
    results = [_result(request, *pair, found) for pair, found in zip(pairs, scores, strict=True)]
    response = GenerateResponse(
        id=new_id("gen"),
        model=model.name,
        results=results,
        metrics=overall,
        usage=total_usage(prompt_tokens, generations),
    )
    yield Event("done", response)


def _generation(request: GenerateRequest, model: ServedModel, sample: _Sample) -> Generation:
    sampling = request.sampling
    ends = () if sampling.ignore_eos else model.info.eos_ids
    logprobs = 0 if request.logprobs is None and "perplexity" in request.metrics else request.logprobs
    job = Generate(
        side=model.side,
        ids=sample.ids,
        max_tokens=sample.max_tokens,
        sampling=sampling_params(sampling, sample.seed),
        ignore_eos=sampling.ignore_eos,
        logprobs=logprobs,
    )
    return Generation(model.pair, job, model.pair.codec.stream(ends=ends, stop=sampling.stop))


async def _tokens(sample: _Sample, generation: Generation, ticket: Ticket) -> AsyncGenerator[GenerateToken, None]:
    async with aclosing(generation.pieces(ticket)) as pieces:
        async for piece in pieces:
            yield GenerateToken(
                prompt_index=sample.prompt_index,
                sample=sample.index,
                index=piece.index,
                id=piece.id,
                text=piece.text,
                logprob=finite(generation.logprobs[piece.index]) if generation.logprobs else None,
            )


def _result(
    request: GenerateRequest, sample: _Sample, generation: Generation, metrics: dict[str, float | None]
) -> Generated:
    logprobs = None
    if request.logprobs is not None:
        top = generation.top if request.logprobs else []
        logprobs = TokenLogprobs(token_logprobs=finites(generation.logprobs), top=top)
    return Generated(
        prompt_index=sample.prompt_index,
        index=sample.index,
        text=generation.text,
        token_ids=generation.token_ids,
        finish_reason=generation.finish_reason,
        seed=sample.seed,
        logprobs=logprobs,
        metrics=metrics,
    )
