"""`/divergence`: how far apart the two models are at every token of given solutions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from app.config import Limits
from app.services import replay
from app.services.ids import new_id
from app.services.interleave import interleave
from app.services.nulls import finite, finites
from app.services.prompts import check_items, prompt_ids, solution_ids
from app.services.registry import Registry, ServedPair
from rl_onoff import summary
from rl_onoff.divergence import LN2, in_nats, swapped
from rl_onoff.errors import InternalError
from rl_onoff.schemas import (
    DivergenceRequest,
    DivergenceResponse,
    DivergenceSummary,
    ItemDivergence,
    Perplexities,
    Provenance,
    StatisticsOut,
)
from rl_onoff.version import __version__
from workers.wire import Array, Compare, Values

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One item's columns, `[T]` each, in the request's order of the models and in its units."""

    measures: dict[str, Column]
    logprobs_a: Column
    logprobs_b: Column
    top1_agree: Column


async def measure(request: DivergenceRequest, registry: Registry, limits: Limits) -> DivergenceResponse:
    check_items(len(request.items), limits)
    served = registry.pair(request.a, request.b)
    jobs = [await _job(request, served, index) for index in range(len(request.items))]
    sources = [partial(_measured, request, served, index, job) for index, job in enumerate(jobs)]
    async with aclosing(interleave(sources, at_once=served.pair.config.sequences)) as answers:
        found = {index: measured async for index, measured in answers}
    columns = [found[index] for index in range(len(jobs))]
    return await asyncio.to_thread(_response, request, served, jobs, columns)


def _response(
    request: DivergenceRequest, served: ServedPair, jobs: list[Compare], columns: list[_Measured]
) -> DivergenceResponse:
    return DivergenceResponse(
        id=new_id("div"),
        a=served.names[0],
        b=served.names[1],
        items=[_item(request, served, job, item) for job, item in zip(jobs, columns, strict=True)],
        summary=_summary(_joined(columns)) if request.summary else None,
        provenance=_provenance(request, served),
    )


async def _job(request: DivergenceRequest, served: ServedPair, index: int) -> Compare:
    codec, item, prefix = served.pair.codec, request.items[index], f"items.{index}."
    if request.prompt_mode == "per_model":
        a = await prompt_ids(item, codec, "a", prefix)
        b = await prompt_ids(item, codec, "b", prefix)
    else:
        a = b = await prompt_ids(item, codec, codec.template_side(served.side_a), prefix)
    solution = await solution_ids(item, codec, prefix)
    codec.fits(max(len(a), len(b)), len(solution), f"items.{index}", "solution tokens")
    names = [swapped(name) if served.swapped else name for name in request.measures]
    return Compare([*a, *solution], len(a), [*b, *solution], len(b), names, request.temperature)


async def _measured(
    request: DivergenceRequest, served: ServedPair, index: int, job: Compare
) -> AsyncGenerator[tuple[int, _Measured], None]:
    chunks: list[Values] = []
    async with aclosing(replay.run(served.pair, job)) as frames:
        chunks.extend([frame async for frame in frames if isinstance(frame, Values)])
    measures: dict[str, Column] = {}
    for name, asked in zip(request.measures, job.measures, strict=True):
        scale = 1 / LN2 if request.units == "bits" and in_nats(name) else 1.0
        sign = -1.0 if served.swapped and name == "delta_logp" else 1.0
        measures[name] = _column([chunk.measures[asked] for chunk in chunks], job) * (sign * scale)
    a = _column([chunk.logprobs_a for chunk in chunks], job)
    b = _column([chunk.logprobs_b for chunk in chunks], job)
    agree = _column([chunk.top1_agree for chunk in chunks], job)
    yield index, _Measured(measures, *((b, a) if served.swapped else (a, b)), agree)


def _column(parts: list[Array], job: Compare) -> Column:
    column = np.concatenate([part.numpy() for part in parts]) if parts else np.empty(0)
    if column.shape != (len(job.a_ids) - job.a_start,):
        raise InternalError("the worker measured another number of positions than asked for")
    return column.astype(np.float64)


def _item(request: DivergenceRequest, served: ServedPair, job: Compare, measured: _Measured) -> ItemDivergence:
    solution = job.a_ids[job.a_start :]
    infinite = {name: np.flatnonzero(~np.isfinite(column)).tolist() for name, column in measured.measures.items()}
    return ItemDivergence(
        token_ids=solution,
        tokens=served.pair.codec.pieces(solution),
        values={name: finites(column.tolist()) for name, column in measured.measures.items()},
        infinite={name: positions for name, positions in infinite.items() if positions},
        summary=_summary(measured) if request.summary else None,
    )


def _joined(items: list[_Measured]) -> _Measured:
    def join(columns: list[Column]) -> Column:
        return np.concatenate(columns)

    return _Measured(
        {name: join([item.measures[name] for item in items]) for name in items[0].measures},
        join([item.logprobs_a for item in items]),
        join([item.logprobs_b for item in items]),
        join([item.top1_agree for item in items]),
    )


def _summary(measured: _Measured) -> DivergenceSummary:
    ratio = summary.perplexities(measured.logprobs_a, measured.logprobs_b)
    return DivergenceSummary(
        positions=measured.top1_agree.size,
        measures={name: _statistics(column) for name, column in measured.measures.items()},
        top1_agreement=float(measured.top1_agree.mean()),
        perplexity=Perplexities(
            a=finite(ratio.a), b=finite(ratio.b), ratio=finite(ratio.ratio), ratio_stderr=finite(ratio.ratio_stderr)
        ),
    )


def _statistics(column: Column) -> StatisticsOut:
    values: dict[str, Any] = asdict(summary.statistics(column))
    values["percentiles"] = {name: finite(cut) for name, cut in values["percentiles"].items()}
    values |= {name: finite(values[name]) for name in ("min", "max")}
    if not math.isfinite(values["mean"]):  # of infinities of both signs there is none
        values["mean"] = None
    return StatisticsOut(**values)


def _provenance(request: DivergenceRequest, served: ServedPair) -> Provenance:
    a, b = served.infos
    return Provenance(
        version=__version__,
        backend=served.pair.info.backend,
        a_fingerprint=a.fingerprint,
        b_fingerprint=b.fingerprint,
        vocab_size=a.vocab_size,
        dtypes=[a.dtype, b.dtype],
        units=request.units,
        temperature=request.temperature,
        prompt_mode=request.prompt_mode,
    )
