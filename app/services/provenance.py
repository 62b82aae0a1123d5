"""What an answer of rows says of where they come from: in JSON, and in the header of a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.services.ids import new_id
from app.services.registry import ServedModel
from rl_onoff.schemas import DistributionsRequest, RowsProvenance
from rl_onoff.version import __version__
from workers.wire import Score


def of_rows(request: DistributionsRequest, model: ServedModel) -> RowsProvenance:
    """Of rows this model answers the request with."""
    pair, own = model.pair.info, model.info
    return RowsProvenance(
        version=__version__,
        backend=pair.backend,
        side=model.side,
        fingerprint=own.fingerprint,
        dtype=own.dtype,
        device=own.device,
        vocab_size=own.vocab_size,
        logit_columns=[pair.a.logit_columns, pair.b.logit_columns],
        temperature=request.temperature,
        merge_eos=request.merge_eos,
        merged_ids=pair.eos_ids if request.merge_eos else [],
        prompt_mode=request.prompt_mode,
    )


def metadata(request: DistributionsRequest, model: ServedModel, jobs: Sequence[Score]) -> dict[str, Any]:
    """Of a file of the jobs' rows."""
    return {
        "id": new_id("dist"),
        "model": model.name,
        "vocab_size": model.info.vocab_size,
        "logit_columns": model.info.logit_columns,
        "kind": request.kind,
        "top_k": request.top_k,
        "dtype": request.dtype,
        "temperature": request.temperature,
        "tokens": [model.pair.codec.pieces(job.ids[job.start :]) for job in jobs],
        "provenance": of_rows(request, model).model_dump(),
    }
