"""/distributions: the rows of one model over given solutions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl_onoff.schemas.common import MAX_INT, MIN_TEMPERATURE, CacheUse, Items, Request, Response, TopTokens

RowKind = Literal["logprobs", "probs", "logits"]
RowDtype = Literal["float32", "float16", "bfloat16"]


class DistributionsRequest(Request):
    model: str
    items: Items
    kind: RowKind = "logprobs"
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_INT, description="null: the full vocabulary (binary answers only)"
    )
    texts: bool = Field(default=False, description="also the text of every token in `top` (JSON answers only)")
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=1e6)
    dtype: RowDtype = Field(default="float32", description="of the values in a binary answer")


class TopTexts(TopTokens):
    tokens: list[str] | None = Field(default=None, description="their texts, if asked for")


class ItemDistributions(Response):
    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top: list[TopTexts]
    entropy: list[float]
    tail: list[float] = Field(default=[], description="probability of all tokens that are not in `top`")


class DistributionsResponse(Response):
    id: str
    model: str
    vocab_size: int = Field(description="ids compared, from 0 on; rows are cut to them before the softmax")
    logit_columns: int | None = Field(default=None, description="the model's own width")
    kind: RowKind
    items: list[ItemDistributions]
    cache: CacheUse
