"""The keyword arguments of the client's methods: the fields of `rl_onoff.schemas`' requests, as types.

Wherever a field is a model (`Sampling`, a policy, an item, a message), a plain dictionary of its fields will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

from rl_onoff.policy import Policy
from rl_onoff.schemas import Item, Message, RowDtype, RowKind, Sampling

MessageLike = Message | Mapping[str, str]
ItemLike = Item | Mapping[str, Any]
PolicyLike = Policy | Mapping[str, Any]


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, which may be given directly; they win over the same field of `sampling`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: list[str] | str | None
    n: int
    ignore_eos: bool


class GenerateFields(SamplingFields, total=False):
    """See `GenerateRequest`."""

    model: Required[str]
    prompts: list[str] | None
    prompt_ids: list[int] | None
    messages: list[MessageLike] | None
    sampling: Sampling | SamplingFields
    logprobs: int | None
    metrics: list[Literal["exact_match", "perplexity"]]
    references: list[str] | None


class DistributionsFields(TypedDict, total=False):
    """See `DistributionsRequest`."""

    model: Required[str]
    kind: RowKind
    top_k: int | None
    temperature: float
    dtype: RowDtype


class DivergenceFields(TypedDict, total=False):
    """See `DivergenceRequest`."""

    a: str | None
    b: str | None
    measures: list[str]
    units: Literal["nats", "bits"]
    temperature: float
    summary: bool
    prompt_mode: Literal["shared", "per_model"]


class SwitchFields(SamplingFields, total=False):
    """See `SwitchRequest`."""

    a: str | None
    b: str | None
    prompt_ids: list[int] | None
    messages: list[MessageLike] | None
    policy: PolicyLike
    sampling: Sampling | SamplingFields
    lookahead: Literal["auto"] | int
    measures: list[str]
