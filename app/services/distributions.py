"""`/distributions`: what one model believes at every token of given solutions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from app.config import Limits
from app.services import provenance, rowstream
from app.services.cache.frames import CachedFrames
from app.services.gate import Ticket, cost
from app.services.ids import new_id
from app.services.interleave import interleave
from app.services.nulls import finites
from app.services.prompts import check_items, prompt_ids, solution_ids, within
from app.services.registry import Registry, ServedModel
from app.services.rowstream import RowStream
from app.services.safetensors import MEDIA_TYPE, Tensor, serialize
from rl_onoff.errors import InternalError, LimitExceeded, NotAcceptable
from rl_onoff.schemas import CacheUse, DistributionsRequest, DistributionsResponse, ItemDistributions, TopTexts
from workers.wire import Array, Rows, Score

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: What one id and its value cost as JSON, about.
_JSON_ENTRY_BYTES = 32
#: And its text, about.
_TEXT_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Scored:
    """One item's answer, in the worker's chunks."""

    job: Score
    rows: list[Rows]

    @property
    def solution(self) -> list[int]:
        return self.job.ids[self.job.start :]


@dataclass(frozen=True, slots=True)
class Scores:
    """The rows of all items, ready to be written as JSON or tensors."""

    request: DistributionsRequest
    model: ServedModel
    items: list[_Scored]
    cache: CacheUse

    @property
    def values(self) -> int:
        """How many JSON would hold, about."""
        return sum(len(item.solution) for item in self.items) * (3 + 2 * (self.request.top_k or 0))

    def as_json(self) -> DistributionsResponse:
        return DistributionsResponse(
            id=new_id("dist"),
            model=self.model.name,
            vocab_size=self.model.info.vocab_size,
            logit_columns=self.model.info.logit_columns,
            kind=self.request.kind,
            temperature=self.request.temperature,
            items=[self._item(item) for item in self.items],
            provenance=provenance.of_rows(self.request, self.model),
            cache=self.cache,
        )

    def as_safetensors(self) -> list[bytes]:
        tensors: dict[str, Tensor] = {}
        for index, item in enumerate(self.items):
            token_ids = Array.of(np.asarray(item.solution, dtype=np.int64))
            tensors[f"{index}.token_ids"] = _tensor([token_ids])
            tensors[f"{index}.token_logprobs"] = _tensor([rows.token_logprobs for rows in item.rows])
            tensors[f"{index}.entropy"] = _tensor([rows.entropy for rows in item.rows])
            tensors[f"{index}.values"] = _tensor([rows.values for rows in item.rows])
            if self.request.top_k is not None:
                tensors[f"{index}.ids"] = _tensor([rows.ids for rows in item.rows if rows.ids is not None])
                tensors[f"{index}.tail"] = _tensor([rows.tail for rows in item.rows if rows.tail is not None])
        return serialize(tensors, provenance.metadata(self.request, self.model, [item.job for item in self.items]))

    def _item(self, item: _Scored) -> ItemDistributions:
        codec = self.model.pair.codec
        ids = _joined([rows.ids for rows in item.rows if rows.ids is not None]).tolist()
        values = _joined([rows.values for rows in item.rows]).tolist()
        return ItemDistributions(
            token_ids=item.solution,
            tokens=codec.pieces(item.solution),
            token_logprobs=finites(_joined([rows.token_logprobs for rows in item.rows]).tolist()),
            top=[
                TopTexts(ids=row, values=finites(best), tokens=codec.pieces(row) if self.request.texts else None)
                for row, best in zip(ids, values, strict=True)
            ],
            entropy=_joined([rows.entropy for rows in item.rows]).tolist(),
            tail=_joined([rows.tail for rows in item.rows if rows.tail is not None]).tolist(),
        )


async def stream(request: DistributionsRequest, registry: Registry, limits: Limits, frames: CachedFrames) -> RowStream:
    """Whole rows, as a file that is written while they are computed."""
    model, jobs = await _planned(request, registry, limits, binary=True)
    return await rowstream.begin(model, jobs, frames, provenance.metadata(request, model, jobs))


async def score(
    request: DistributionsRequest, registry: Registry, limits: Limits, frames: CachedFrames, *, binary: bool
) -> Scores:
    model, jobs = await _planned(request, registry, limits, binary=binary)
    with model.pair.ticket(sum(cost(job, model.info.vocab_size) for job in jobs)) as ticket:
        sources = [partial(_scored, model, index, job, frames, ticket) for index, job in enumerate(jobs)]
        async with aclosing(interleave(sources, at_once=model.pair.config.sequences)) as answers:
            found = {index: scored async for index, scored in answers}
    return Scores(request, model, [found[index] for index in range(len(jobs))], frames.use)


async def _planned(
    request: DistributionsRequest, registry: Registry, limits: Limits, *, binary: bool
) -> tuple[ServedModel, list[Score]]:
    if request.top_k is None and not binary:
        raise NotAcceptable(
            f"whole rows are answered as tensors: send `Accept: {MEDIA_TYPE}`, or set top_k for JSON",
            available=[MEDIA_TYPE],
        )
    check_items(len(request.items), limits)
    model = registry.model(request.model)
    if request.top_k is not None:
        within(request.top_k, model.info.vocab_size, "top_k", "tokens")
    jobs = [await _job(request, model, index, binary) for index in range(len(request.items))]
    _check_budget(request, jobs, model.info.vocab_size, limits.row_bytes, binary)
    return model, jobs


async def _job(request: DistributionsRequest, model: ServedModel, index: int, binary: bool) -> Score:
    codec, item, prefix = model.pair.codec, request.items[index], f"items.{index}."
    side = model.side if request.prompt_mode == "per_model" else codec.template_side("a")
    prompt = await prompt_ids(item, codec, side, prefix)
    solution = await solution_ids(item, codec, prefix)
    codec.fits(len(prompt), len(solution), f"items.{index}", "solution tokens")
    return Score(
        side=model.side,
        ids=[*prompt, *solution],
        start=len(prompt),
        kind=request.kind,
        temperature=request.temperature,
        top_k=request.top_k,
        dtype=request.dtype if binary else "float32",
        merge=model.pair.info.eos_ids if request.merge_eos else [],
    )


def _check_budget(request: DistributionsRequest, jobs: list[Score], vocab_size: int, limit: int, binary: bool) -> None:
    positions = sum(len(job.ids) - job.start for job in jobs)
    width = vocab_size if request.top_k is None else request.top_k
    entry = _ITEM_BYTES[request.dtype] + (8 if request.top_k is not None else 0) if binary else _JSON_ENTRY_BYTES
    entry += _TEXT_BYTES if request.texts and not binary else 0
    if positions * width * entry > limit:
        fit = limit // (width * entry)
        raise LimitExceeded(
            f"{positions} positions x {width} entries x {entry} bytes exceed the limit of {limit} bytes: "
            f"{fit} positions would fit",
            field="items",
            limit=limit,
            actual=positions * width * entry,
            positions=positions,
            positions_that_fit=fit,
        )


async def _scored(
    model: ServedModel, index: int, job: Score, cached: CachedFrames, ticket: Ticket
) -> AsyncGenerator[tuple[int, _Scored], None]:
    async with aclosing(cached.run(model.pair, job, ticket)) as frames:
        rows = [frame async for frame in frames if isinstance(frame, Rows)]
    if sum(part.values.shape[0] for part in rows) != len(job.ids) - job.start:
        raise InternalError("the worker scored another number of positions than asked for")
    yield index, _Scored(job, rows)


def _joined(parts: list[Array]) -> npt.NDArray[Any]:
    return np.concatenate([part.numpy() for part in parts])


def _tensor(parts: list[Array]) -> Tensor:
    length = sum(part.shape[0] for part in parts)
    return Tensor(parts[0].dtype, (length, *parts[0].shape[1:]), [part.data for part in parts])
