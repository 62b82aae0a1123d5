"""A model on an SGLang server that somebody else runs, unextended, perhaps on another machine.

Rows come as the V likeliest of every position, in arrays of base64: exact, and ten times the cost of rows through
memory (docs/sglang.md). Each drafted token is a request of its own, drawn here.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import torch

from rl_onoff.errors import InternalError, InvalidField
from workers import sampling
from workers.backends.base import Draft
from workers.backends.sglang.model import SGLangModel
from workers.wire import SamplingParams

_FLAT = ("return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs", "return_flat_raw_top_logprobs_b64")


class RemoteModel(SGLangModel):
    async def rows(self, ids: list[int], start: int, kind: str) -> torch.Tensor:
        """Raises InvalidField for logits, which such a server keeps to itself."""
        if kind == "logits":
            raise InvalidField("an SGLang server of somebody else's gives no logits; ask for logprobs", field="kind")
        self._check(ids, start, len(ids) - start + 1)
        request = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": start - 1,
            "top_logprobs_num": self.info.logit_columns,
            **dict.fromkeys(_FLAT, True),
        }
        meta = (await self._post("/generate", request))["meta_info"]
        rows = await asyncio.to_thread(_rows, meta, len(ids) - start + 1, self.info.logit_columns)
        self._count(meta, 1)
        return rows[:, : self.info.vocab_size].log_softmax(-1)  # over the shared vocabulary alone

    async def draft(self, ids: list[int], count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        prefix = list(ids)
        rows: list[torch.Tensor] = []
        while len(rows) < count and (not rows or prefix[-1] not in eos):
            rows.append(await self.rows(prefix, len(prefix), "logprobs"))
            prefix += sampling.choose(rows[-1], params, [len(prefix)])
        return Draft(prefix[len(ids) :], torch.cat(rows))


def _rows(meta: dict[str, Any], count: int, columns: int) -> torch.Tensor:
    """`[count, columns]`. Raises InternalError unless every entry is there, once."""
    values, ids = (
        np.concatenate([_array(meta, f"{side}_top_logprobs_{part}_flat_b64") for side in ("input", "output")])
        for part in ("val", "idx")
    )
    if values.size != count * columns or ids.size != values.size:
        raise InternalError(f"the SGLang server sent {values.size} log-probabilities of {count * columns}")
    rows = np.full((count, columns), np.nan, dtype=np.float32)
    np.put_along_axis(rows, ids.reshape(count, columns).astype(np.int64), values.reshape(count, columns), axis=1)
    if np.isnan(rows).any():
        raise InternalError("a row is missing: the model gave NaN, or the server left an id out")
    return torch.from_numpy(rows)


def _array(meta: dict[str, Any], name: str) -> np.ndarray[Any, np.dtype[Any]]:
    if name not in meta:  # of a single row there is no input part
        return np.empty(0, dtype=np.float32 if "_val_" in name else np.int32)
    return np.frombuffer(base64.b64decode(meta[name]), dtype=meta[name + "_dtype"])
