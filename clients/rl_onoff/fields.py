"""The keyword arguments of the client's methods: the fields of `rl_onoff.schemas`' requests, as types.

Wherever a field is a model (`Sampling`, a policy, an item, a message), a plain dictionary of its fields will do;
wherever it is a list or a number, a tuple, an array or a number of numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

import numpy as np
import numpy.typing as npt

from rl_onoff.policy import Policy
from rl_onoff.schemas import Given, Item, Message, PromptMode, RowDtype, RowKind, Sampling

Integer = int | np.integer[Any]
Real = float | Integer | np.floating[Any]
IdsLike = Sequence[Integer] | npt.NDArray[np.integer[Any]]
MessageLike = Message | Mapping[str, str]
ItemLike = Item | Mapping[str, Any]
PolicyLike = Policy | Mapping[str, Any]


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, which may be given directly; they win over the same field of `sampling`."""

    max_tokens: Integer
    temperature: Real
    top_p: Real
    top_k: Integer
    min_p: Real
    seed: Integer | None
    stop: Sequence[str] | None
    n: Integer
    ignore_eos: bool


class GenerateFields(SamplingFields, total=False):
    """See `GenerateRequest`."""

    model: Required[str]
    prompts: Sequence[str] | None
    prompt_ids: IdsLike | None
    messages: Sequence[MessageLike] | None
    sampling: Sampling | SamplingFields | None
    logprobs: Integer | None
    metrics: Sequence[str]
    references: Sequence[str] | None


class DistributionsFields(TypedDict, total=False):
    """See `DistributionsRequest`."""

    model: Required[str]
    kind: RowKind
    top_k: Integer | None
    temperature: Real
    dtype: RowDtype
    merge_eos: bool
    prompt_mode: PromptMode


class DivergenceFields(TypedDict, total=False):
    """See `DivergenceRequest`."""

    a: str | None
    b: str | None
    measures: Sequence[str]
    units: Literal["nats", "bits"]
    temperature: Real
    summary: bool
    columns: bool
    noise_floor: bool
    merge_eos: bool
    prompt_mode: PromptMode


class SwitchFields(SamplingFields, total=False):
    """See `SwitchRequest`."""

    a: str | None
    b: str | None
    prompt_ids: IdsLike | None
    messages: Sequence[MessageLike] | None
    given: Given | Mapping[str, Any] | None
    policy: PolicyLike
    sampling: Sampling | SamplingFields | None
    lookahead: Literal["auto"] | Integer
    measures: Sequence[str]
