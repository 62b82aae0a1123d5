"""What a worker says of itself."""

from __future__ import annotations

import msgspec


class ModelInfo(msgspec.Struct, frozen=True):
    """One loaded model.

    `vocab_size` is V, the vocabulary the pair shares; `logit_columns` the width of the model's own logit matrix.
    `fingerprint` is a hash of weights, configuration and tokenizer files. `chat_template` is its own, in Jinja.
    """

    name: str
    source: str
    revision: str | None
    fingerprint: str
    dtype: str
    device: str
    vocab_size: int
    logit_columns: int
    max_len: int
    eos_ids: list[int]
    chat_template: str | None
    parameters: int


class PairInfo(msgspec.Struct, frozen=True):
    """A loaded pair, with the tokenizer both share as a `tokenizer.json` document.

    `special_tokens` maps names chat templates use (`bos_token`, `eos_token`, ...) to their text. `warnings` are
    findings of the pair check an operator should read. `noise` is how far a signal, and under `logprob` a
    log-probability, was seen to move with the shape of the forward pass alone. `libraries` are the versions of those
    that compute (`workers.libraries`).
    """

    name: str
    backend: str
    version: str
    a: ModelInfo
    b: ModelInfo
    tokenizer: str
    special_tokens: dict[str, str]
    warnings: list[str] = []
    noise: dict[str, float] = {}
    libraries: dict[str, str] = {}

    @property
    def eos_ids(self) -> list[int]:
        """The end-of-sequence tokens of either model, in order."""
        return sorted({*self.a.eos_ids, *self.b.eos_ids})


class Health(msgspec.Struct, frozen=True):
    """`steps` counts forward passes; `active` the jobs in hand. Steps that stand still while jobs wait mean a hang."""

    steps: int
    active: int
    pid: int
