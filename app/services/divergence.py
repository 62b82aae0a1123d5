"""`/divergence`: how far apart the two models are at every token of given solutions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import msgspec
import numpy as np
import numpy.typing as npt

from app.config import Limits
from app.services.beside import beside
from app.services.cache.frames import CachedFrames
from app.services.gate import Ticket, cost
from app.services.ids import new_id
from app.services.interleave import interleave
from app.services.nulls import finites
from app.services.prompts import check_items, prompt_ids, solution_ids
from app.services.registry import Registry, ServedPair
from app.services.summaries import NEEDED, summarised
from rl_onoff.divergence import LN2, in_nats, swapped
from rl_onoff.errors import InternalError
from rl_onoff.schemas import (
    CacheUse,
    DivergenceRequest,
    DivergenceResponse,
    ItemDivergence,
    Provenance,
)
from rl_onoff.schemas.divergence import NoiseFloor
from rl_onoff.statistics import ItemColumns
from rl_onoff.version import __version__
from workers.wire import Array, Compare, Floor, Values

#: Summing up an item takes as long as passing over so many values.
_SUMMARY = 700

#: Measures of A's row alone: their noise is how far they are from the same of A again, which plays B.
_OF_A_ALONE = {"entropy_a": "entropy_b", "top_prob_a": "top_prob_b"}
_OF_B_ALONE = "it is of B alone, and the floor is A's"

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One item's columns, in the request's order of the models and in its units."""

    columns: ItemColumns
    kernel: str


async def measure(
    request: DivergenceRequest, registry: Registry, limits: Limits, frames: CachedFrames
) -> DivergenceResponse:
    check_items(len(request.items), limits)
    served = registry.pair(request.a, request.b)
    jobs = [await _job(request, served, index) for index in range(len(request.items))]
    total = sum(cost(job, served.infos[0].vocab_size) for job in jobs)
    with served.pair.ticket(3 * total if request.noise_floor else total) as ticket:
        sources = [partial(_measured, request, served, index, job, frames, ticket) for index, job in enumerate(jobs)]
        async with aclosing(interleave(sources, at_once=served.pair.config.sequences)) as answers:
            found = {index: measured async for index, measured in answers}
        columns = [found[index] for index in range(len(jobs))]
        floors = {
            kind: await _floor(kind, request, served, jobs, frames, ticket)
            for kind in (get_args(Floor) if request.noise_floor else ())
        }
    size = sum(_values(len(job.a_ids) - job.a_start, len(job.measures), request.summary) for job in jobs)
    size *= 1 + len(floors)
    return await beside(size, lambda: _response(request, served, jobs, columns, floors, frames.use))


def _values(positions: int, measures: int, summary: bool) -> int:
    return positions * (4 + measures) + _SUMMARY * summary


def _response(
    request: DivergenceRequest,
    served: ServedPair,
    jobs: list[Compare],
    found: list[_Measured],
    floors: dict[Floor, list[ItemColumns]],
    cache: CacheUse,
) -> DivergenceResponse:
    columns = [item.columns for item in found]
    solutions = [job.a_ids[job.a_start :] for job in jobs]
    items = [_item(request, served, index, ids, columns[index]) for index, ids in enumerate(solutions)]
    if len(items) == 1 or not request.summary:
        overall = items[0].summary
    else:
        overall = summarised(columns, solutions, served.pair.codec)
    return DivergenceResponse(
        id=new_id("div"),
        a=served.names[0],
        b=served.names[1],
        items=items,
        summary=overall,
        noise_floor=_noise_floor(request, served, solutions, floors) if request.noise_floor else None,
        provenance=_provenance(request, served, jobs[0].merge, found[0].kernel),
        cache=cache,
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
    names = [*request.measures, *(NEEDED if request.summary or request.columns else ())]
    asked = [swapped(name) if served.swapped else name for name in dict.fromkeys(names)]
    return Compare(
        [*a, *solution],
        len(a),
        [*b, *solution],
        len(b),
        asked,
        request.temperature,
        served.pair.info.eos_ids if request.merge_eos else [],
    )


async def _measured(
    request: DivergenceRequest, served: ServedPair, index: int, job: Compare, cached: CachedFrames, ticket: Ticket
) -> AsyncGenerator[tuple[int, _Measured], None]:
    chunks: list[Values] = []
    async with aclosing(cached.run(served.pair, job, ticket)) as frames:
        chunks.extend([frame async for frame in frames if isinstance(frame, Values)])
    columns: dict[str, Column] = {}
    turned = served.swapped and job.floor is None
    for asked in job.measures:
        name = swapped(asked) if turned else asked
        scale = 1 / LN2 if request.units == "bits" and in_nats(name) else 1.0
        sign = -1.0 if turned and name == "delta_logp" else 1.0
        columns[name] = _column([chunk.measures[asked] for chunk in chunks], job) * (sign * scale)
    a = _column([chunk.logprobs_a for chunk in chunks], job)
    b = _column([chunk.logprobs_b for chunk in chunks], job)
    ones = np.ones_like(a)  # where no summary needs them
    top_prob, rank = (columns.get(name, ones) for name in NEEDED)
    found = ItemColumns(
        measures={name: columns[name] for name in dict.fromkeys(request.measures)},
        logprobs_a=b if turned else a,
        logprobs_b=a if turned else b,
        top1_agree=_column([chunk.top1_agree for chunk in chunks], job),
        top_prob_a=top_prob,
        rank=rank,
    )
    yield index, _Measured(found, chunks[0].kernel if chunks else "")


async def _floor(
    kind: Floor,
    request: DivergenceRequest,
    served: ServedPair,
    jobs: list[Compare],
    frames: CachedFrames,
    ticket: Ticket,
) -> list[ItemColumns]:
    """The request's measures between its A and A itself, item by item; none where all are of B alone."""
    names = [name for name in dict.fromkeys(request.measures) if name not in _OF_A_ALONE.values()]
    if not names:
        return []
    twice = [_OF_A_ALONE[name] for name in names if name in _OF_A_ALONE]
    asked = request.model_copy(update={"summary": False, "measures": [*names, *twice]})
    again = [
        msgspec.structs.replace(job, measures=asked.measures, floor=kind, floor_side=served.side_a) for job in jobs
    ]
    sources = [partial(_measured, asked, served, index, job, frames, ticket) for index, job in enumerate(again)]
    async with aclosing(interleave(sources, at_once=served.pair.config.sequences)) as answers:
        found = {index: measured.columns async for index, measured in answers}
    return [_moved(found[index], names) for index in range(len(jobs))]


def _moved(item: ItemColumns, names: list[str]) -> ItemColumns:
    found = item.measures
    moves = {name: np.abs(found[_OF_A_ALONE[name]] - found[name]) for name in names if name in _OF_A_ALONE}
    if "delta_logp" in names:
        moves["delta_logp"] = np.abs(found["delta_logp"])  # its sign means nothing here, and its mean would be of both
    return replace(item, measures={name: found[name] for name in names} | moves)


def _noise_floor(
    request: DivergenceRequest, served: ServedPair, solutions: list[list[int]], floors: dict[Floor, list[ItemColumns]]
) -> NoiseFloor:
    kinds = {
        kind: summarised(columns, solutions, served.pair.codec).measures if columns else {}
        for kind, columns in floors.items()
    }
    absent = {name: _OF_B_ALONE for name in request.measures if name in _OF_A_ALONE.values()}
    return NoiseFloor(pass_shape=kinds["pass_shape"], bfloat16_logits=kinds["bfloat16_logits"], absent=absent)


def _column(parts: list[Array], job: Compare) -> Column:
    column = np.concatenate([part.numpy() for part in parts]) if parts else np.empty(0)
    if column.shape != (len(job.a_ids) - job.a_start,):
        raise InternalError("the worker measured another number of positions than asked for")
    return column.astype(np.float64)


def _item(
    request: DivergenceRequest, served: ServedPair, index: int, solution: list[int], columns: ItemColumns
) -> ItemDivergence:
    codec = served.pair.codec
    needed = {
        "top1_agree": columns.top1_agree.tolist(),
        "top_prob_a": columns.top_prob_a.tolist(),
        "rank_of_b_in_a": columns.rank.tolist(),
    }
    return ItemDivergence(
        token_ids=solution,
        tokens=codec.pieces(solution),
        values={name: finites(column.tolist()) for name, column in columns.measures.items()},
        infinite=_places(np.isinf, columns),
        negative_infinite=_places(np.isneginf, columns),
        logprobs_a=finites(columns.logprobs_a.tolist()),
        logprobs_b=finites(columns.logprobs_b.tolist()),
        columns=needed if request.columns else None,
        summary=summarised([columns], [solution], codec, index) if request.summary else None,
    )


def _places(chosen: Callable[[Column], npt.NDArray[np.bool_]], columns: ItemColumns) -> dict[str, list[int]]:
    found = {name: np.flatnonzero(chosen(column)).tolist() for name, column in columns.measures.items()}
    return {name: positions for name, positions in found.items() if positions}


def _provenance(request: DivergenceRequest, served: ServedPair, merged: list[int], kernel: str) -> Provenance:
    a, b = served.infos
    return Provenance(
        version=__version__,
        backend=served.pair.info.backend,
        a_fingerprint=a.fingerprint,
        b_fingerprint=b.fingerprint,
        vocab_size=a.vocab_size,
        logit_columns=[a.logit_columns, b.logit_columns],
        dtypes=[a.dtype, b.dtype],
        devices=[a.device, b.device],
        kernel=kernel,
        merge_eos=request.merge_eos,
        merged_ids=merged,
        units=request.units,
        temperature=request.temperature,
        prompt_mode=request.prompt_mode,
    )
