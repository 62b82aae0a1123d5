"""Keys: a running hash over who computed, what, and every token up to the end of a block.

Two sequences that begin alike share the keys of their common blocks, and no others; a key says nothing about its text
to who has no guess of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from rl_onoff.version import __version__
from workers.wire import PairInfo, Side

#: Of keys and values alike: what an older or newer format wrote is never found.
FORMAT: Final = 4
#: Positions of a block of top-k rows or measures, and at most of whole rows.
POSITIONS: Final = 16
#: What a block of whole rows should not exceed if it has more than one position: Redis is fastest at 0.3-1.2 MB.
_ROWS_BYTES: Final = 5 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """Positions `begin`..`end - 1`, counted from the first scored one."""

    begin: int
    end: int
    key: bytes


def row_positions(vocab_size: int) -> int:
    """Positions of a block of whole float32 rows: a power of two, so that it divides POSITIONS."""
    positions = POSITIONS
    while positions > 1 and positions * vocab_size * 4 > _ROWS_BYTES:
        positions //= 2
    return positions


def identity(info: PairInfo, side: Side, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a model's rows but the tokens. Contents of files, not names: see `ModelInfo.fingerprint`.

    Cards of one kind count as one device. The backend's options, our own version and those of the libraries that
    compute are in it because any of them may change the numbers.
    """
    model = info.a if side == "a" else info.b
    return {
        "fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "device": model.device.partition(":")[0],
        "vocab_size": model.vocab_size,
        "backend": info.backend,
        "backend_version": info.version,
        "libraries": info.libraries,
        "options": dict(options),
    }


def root(**fields: Any) -> bytes:
    """SHA-256 over tagged fields: every name, value and length is part of it."""
    document = msgspec.msgpack.encode([FORMAT, __version__, fields], order="sorted")
    return hashlib.sha256(document).digest()


def chain(root: bytes, prompts: Sequence[Sequence[int]], solution: Sequence[int], size: int) -> list[Block]:
    """The blocks of `size` positions of a solution after its prompt (for a pair, each model's own).

    A block's key hashes the root, the prompts and the solution up to the block's end: as a chain of parents would.
    """
    running = hashlib.sha256(root)
    for prompt in prompts:
        running.update(len(prompt).to_bytes(8, "little"))
        running.update(_bytes(prompt))
    blocks = []
    for begin in range(0, len(solution), size):
        end = min(begin + size, len(solution))
        running.update(_bytes(solution[begin:end]))
        blocks.append(Block(begin, end, running.digest()))
    return blocks


def _bytes(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<u4").tobytes()
