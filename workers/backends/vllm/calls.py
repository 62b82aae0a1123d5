"""What sequences ask of the engines."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers.backends.vllm.extension import SwitchRound, Wish

Future = asyncio.Future[Any] | concurrent.futures.Future[Any]


@dataclass(frozen=True, slots=True)
class News:
    """The next tokens of a request; of each, if wished, its log-probability and the most likely ids with theirs.

    Of switched generation, what the last pass emitted instead.
    """

    tokens: list[int]
    described: list[tuple[float, list[int], list[float]]]
    rounds: list[SwitchRound]


@dataclass(slots=True, eq=False)
class RequestCall:
    """One request to an engine: rows of `ids`, or up to `count` tokens after them, ending with one of `stop`."""

    engine: Any  # LLMEngine
    ids: list[int]
    wish: Wish
    future: Future
    count: int = 1
    stop: tuple[int, ...] = ()
    adapter: Any = None  # LoRARequest
    progress: Callable[[News], None] | None = None  # called in the future's loop, where the tokens are wanted at once
    request_id: str = field(default="", init=False)  # vLLM's own, once the request is added

    @property
    def wanted(self) -> int:
        """Rows asked of a pass."""
        return 1 if self.wish.start is None else len(self.ids) - self.wish.start + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of a request, their rows or the prompt's `[n, V]`, and the passes it took.

    Where there was `progress`, neither tokens nor rows.
    """

    tokens: list[int]
    rows: Any
    passes: int


@dataclass(slots=True, eq=False)
class ComputeCall:
    """Work that belongs in the engines' thread."""

    run: Callable[[], Any]
    future: Future
