"""/distributions: the rows of one model over given solutions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rl_onoff.schemas.common import (
    MAX_INT,
    MIN_TEMPERATURE,
    CacheUse,
    Items,
    PromptMode,
    Request,
    Response,
    TopTokens,
    check_prompt_mode,
    fault,
)

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
    merge_eos: bool = Field(
        default=False,
        description="count all end-of-sequence tokens of the pair as one: the first of them in a row has the "
        "probability of all, the others none",
    )
    prompt_mode: PromptMode = Field(
        default="shared",
        description="of `messages`: through the chat template the pair's models share, as for `/divergence` (A's, or "
        "B's where A has none), or, with per_model, through this model's own",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DistributionsRequest:
        check_prompt_mode(self.prompt_mode, self.items)
        if self.merge_eos and self.kind == "logits":
            raise fault("merge_eos", "no model has a logit of merged tokens: ask for logprobs or probs")
        return self


class TopTexts(TopTokens):
    tokens: list[str] | None = Field(default=None, description="their texts, if asked for")


class ItemDistributions(Response):
    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top: list[TopTexts]
    entropy: list[float]
    tail: list[float] = Field(default=[], description="probability of all tokens that are not in `top`")


class RowsProvenance(Response):
    """What the rows were computed from. `merged_ids`: in every row the first has the probability of all of them."""

    version: str
    backend: str
    side: Literal["a", "b"] = Field(description="which model of its pair it is")
    fingerprint: str
    dtype: str = Field(description="the model's own")
    device: str
    vocab_size: int = Field(description="ids in a row, from 0 on: those both models of the pair have")
    logit_columns: list[int] = Field(description="the own widths of the pair's A and B; columns beyond are cut")
    temperature: float
    merge_eos: bool
    merged_ids: list[int]
    prompt_mode: PromptMode


class DistributionsResponse(Response):
    id: str
    model: str
    vocab_size: int = Field(description="ids compared, from 0 on; rows are cut to them before the softmax")
    logit_columns: int | None = Field(default=None, description="the model's own width")
    kind: RowKind
    temperature: float = 1.0
    items: list[ItemDistributions]
    provenance: RowsProvenance | None = None
    cache: CacheUse
