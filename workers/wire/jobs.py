"""What a worker can be asked to do."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Side = Literal["a", "b"]
#: How a model may differ from itself (`workers.floor`).
Floor = Literal["pass_shape", "bfloat16_logits"]


class SamplingParams(msgspec.Struct, frozen=True):
    """How one sequence's tokens are drawn (see `workers.sampling`). `top_k` 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Sample one continuation of `ids` from one model. Answer: `Tokens`..., `Done`."""

    side: Side
    ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    ignore_eos: bool = False
    logprobs: int | None = None  # None: no log-probabilities; k: of the token and of the k most likely


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Rows of one model for positions `start`..`len(ids) - 1` of `ids`. Answer: `Rows`..., `Done`.

    With `top_k` each row is cut to its k largest entries, else it is whole, in `dtype`. Tokens in `merge` count as one,
    the first of them, as in `Compare`; there are no logits of merged tokens.
    """

    side: Side
    ids: list[int]
    start: int
    kind: Literal["logprobs", "probs", "logits"] = "logprobs"
    temperature: float = 1.0
    top_k: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    merge: list[int] = []


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Measures of A and B over the same solution. Answer: `Values`..., `Done`.

    The two prompts may differ (each model's own chat template); the tokens from `a_start` and `b_start` on must not.
    Tokens in `merge` count as one, the first of them. With `floor` the model `floor_side` is compared over its own ids
    with itself: computed in passes of another shape, or with its logits rounded to bfloat16.
    """

    a_ids: list[int]
    a_start: int
    b_ids: list[int]
    b_start: int
    measures: list[str]
    temperature: float = 1.0
    merge: list[int] = []
    floor: Floor | None = None
    floor_side: Side = "a"


class SwitchGenerate(msgspec.Struct, frozen=True, tag="switch"):
    """Switched generation after `ids`. Answer: `Tokens`..., `Done`.

    `policy` is a policy's JSON form (`rl_onoff.policy.Policy`). With `state` (the fields of a `PolicyState`) a run is
    resumed: `ids` holds the prompt and the tokens emitted so far, `state` is the policy's after them.
    """

    ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    policy: dict[str, Any]
    measures: list[str] = []
    ignore_eos: bool = False
    lookahead: int | None = None  # None: the worker chooses; 0: token by token
    swapped: bool = False  # the pair's b plays A, and its a plays B
    state: dict[str, Any] | None = None
    logprobs: int | None = None  # as in `Generate`, from the row of the model that leads


class SwitchScore(msgspec.Struct, frozen=True, tag="switch-score"):
    """Walk a policy over the given tokens `start`..`len(ids) - 1`, and score each by the model that leads there.

    The signals are those a switched generation with this `sampling` would see after the same prefix; only the token is
    given. `logprobs` also asks for the k most likely tokens of the leader's row. With `state` a walk is resumed.
    Answer: `Walked`..., `Done`.
    """

    ids: list[int]
    start: int
    sampling: SamplingParams
    policy: dict[str, Any]
    logprobs: int = 0
    swapped: bool = False
    state: dict[str, Any] | None = None


Job = Generate | Score | Compare | SwitchGenerate | SwitchScore
