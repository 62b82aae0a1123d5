"""What a job is answered with."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rl_onoff.errors import OnOffError, from_problem
from workers.wire.array import Array


class Usage(msgspec.Struct, frozen=True):
    """Cost so far of the job a frame belongs to."""

    a_forwards: int = 0
    b_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    within_noise: int = 0


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """The next tokens of a generation, one or more. Every list has one entry per token, or is empty.

    `values` holds the recorded measures; `top_ids` and `top_logprobs` the most likely tokens, best first.
    """

    ids: list[int]
    usage: Usage
    leads: str = ""
    values: dict[str, list[float]] = {}
    logprobs: list[float] = []
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []


class Rows(msgspec.Struct, frozen=True, tag="rows"):
    """Rows of consecutive positions: `values` `[n, V]`, or `[n, k]` with `ids` `[n, k]` best first.

    `token_logprobs` `[n]` is the log-probability of each position's own token and `entropy` `[n]` the row's, both of
    the whole row at the job's temperature; `tail` `[n]`, beside `ids`, the probability of all other tokens.
    """

    start: int
    values: Array
    ids: Array | None
    token_logprobs: Array
    entropy: Array
    tail: Array | None = None


class Values(msgspec.Struct, frozen=True, tag="values"):
    """Measures of consecutive positions, `[n]` float64 each, with what the summaries need beside them.

    `kernel` names what computed them.
    """

    start: int
    measures: dict[str, Array]
    logprobs_a: Array
    logprobs_b: Array
    top1_agree: Array
    kernel: str = ""


class Walked(msgspec.Struct, frozen=True, tag="walked"):
    """Who leads at consecutive given tokens, and what the leader thought of them: one entry per token each.

    `values` holds the policy's signals; `top_ids` and `top_logprobs` the leader's most likely tokens, best first.
    """

    start: int
    leads: str
    values: dict[str, list[float]]
    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]
    usage: Usage


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job is finished. `finish_reason` is `stop` (an EOS was emitted) or `length`, for generations."""

    usage: Usage = Usage()
    finish_reason: Literal["stop", "length"] | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job failed; `problem` as `OnOffError.problem()`."""

    problem: dict[str, Any]

    @classmethod
    def of(cls, error: OnOffError) -> Failed:
        return cls(error.problem())

    def error(self) -> OnOffError:
        return from_problem(self.problem)


Frame = Tokens | Rows | Values | Walked | Done | Failed
