"""What a request asks of the plugin inside the server. It travels as the request's id, the one field that SGLang hands
unchanged to the model's forward pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

import msgspec

from workers.wire import SamplingParams

PREFIX: Final = "rl-onoff:"
#: Environment variables of the server: the process whose memory files orders name, and V.
OWNER: Final = "RL_ONOFF_SGLANG_OWNER"
VOCAB_SIZE: Final = "RL_ONOFF_SGLANG_VOCAB_SIZE"


class Order(msgspec.Struct, frozen=True):
    """Write rows `first`..`first + rows - 1` (`workers.backends.base`) into the memory file, float32 `[rows, V]`.

    `file` is its number, never given twice, and `descriptor` the owner's for it. A `draft` begins with the row after
    the prompt, and each of its tokens is drawn from its row by `sampling`.
    """

    serial: int
    kind: Literal["logprobs", "logits", "draft"]
    file: int
    descriptor: int
    first: int
    rows: int
    sampling: SamplingParams | None = None

    def request_id(self) -> str:
        """None is the beginning of another: SGLang aborts all that begin with the one given."""
        return PREFIX + msgspec.json.encode(self).decode()


_decoder = msgspec.json.Decoder(Order)


@lru_cache(maxsize=4096)
def order_of(request_id: str) -> Order | None:
    """The order a request id carries; None where there is none."""
    if not request_id.startswith(PREFIX):
        return None
    return _decoder.decode(request_id.removeprefix(PREFIX))
