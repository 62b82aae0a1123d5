"""What runs inside the SGLang server: hooks that hand out exact rows and draw tokens with our noise.

Loaded by SGLang itself in each of its processes, through the entry point group `sglang.srt.plugins` (`server` puts the
entry point on the server's path). Three methods are wrapped, none changed:

`LogitsProcessor.forward`        knows which rows of a prefill belong to which request
`LogitsProcessor._get_logits`    gives their logits, chunk by chunk: each is written and forgotten
`ModelRunner.sample`             gives the row of each generated token, before any of SGLang's own processing

Requests that carry no order (`orders`) are left alone. Hooks run in the server's one model loop, where an exception
ends the server: what cannot be written is logged, and its reader finds NaN.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workers.backends.sglang.orders import OWNER, VOCAB_SIZE, Order, order_of
from workers.sampling import choose

logger = logging.getLogger("rl_onoff.sglang")


def register() -> None:
    """The entry point."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if OWNER not in os.environ:
        return
    hooks = Hooks(RowFiles(int(os.environ[OWNER])), int(os.environ[VOCAB_SIZE]))
    for target, hook in (
        ("sglang.srt.layers.logits_processor.LogitsProcessor.forward", hooks.forward),
        ("sglang.srt.layers.logits_processor.LogitsProcessor._get_logits", hooks.get_logits),
        ("sglang.srt.model_executor.model_runner.ModelRunner.sample", hooks.sample),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)


class RowFiles:
    """The owner's memory files, mapped once each."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._mapped: dict[int, tuple[int, torch.Tensor]] = {}  # by descriptor: file, values

    def write(self, order: Order, first: int, rows: torch.Tensor) -> None:
        """Write those of `rows` `[n, V]`, the first of which is row `first`, that the order asks for."""
        begin, end = max(first, order.first), min(first + len(rows), order.first + order.rows)
        if begin >= end:
            return
        width = rows.shape[1]
        try:
            values = self._values(order, order.rows * width)
            target = values[(begin - order.first) * width : (end - order.first) * width]
            target.view(end - begin, width).copy_(rows[begin - first : end - first])
        except (OSError, ValueError, RuntimeError):
            logger.exception("rows could not be written")

    def _values(self, order: Order, count: int) -> torch.Tensor:
        number, values = self._mapped.get(order.descriptor, (-1, None))
        if values is None or number != order.file or len(values) < count:  # another file, or it has grown
            with open(f"/proc/{self._owner}/fd/{order.descriptor}", "r+b") as opened:
                values = torch.frombuffer(mmap.mmap(opened.fileno(), 0), dtype=torch.float32)
            self._mapped[order.descriptor] = order.file, values
        return values


@dataclass(slots=True)
class _Prefill:
    """The rows one pass over prompts gives logits of, in their order: (order, first row, how many)."""

    parts: list[tuple[Order | None, int, int]]
    done: int = 0


class Hooks:
    """The wrapped methods; `original` is the one of SGLang."""

    def __init__(self, files: RowFiles, vocab_size: int) -> None:
        self._files = files
        self._vocab_size = vocab_size
        self._prefill: _Prefill | None = None

    def forward(self, original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
        self._prefill = _prefill(args[3] if len(args) > 3 else kwargs["logits_metadata"])
        try:
            return original(processor, *args, **kwargs)
        finally:
            self._prefill = None

    def get_logits(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logits = original(*args, **kwargs)
        if self._prefill is not None and _writes():
            self._take(self._prefill, logits)
        return logits

    def _take(self, prefill: _Prefill, logits: torch.Tensor) -> None:
        """Write what was asked for of the pass's next `len(logits)` rows."""
        begin, end = prefill.done, prefill.done + len(logits)
        prefill.done = end
        offset = 0
        for order, first, count in prefill.parts:
            left, right = max(begin, offset), min(end, offset + count)
            if order is not None and order.kind != "draft" and left < right:
                rows = self._rows(logits[left - begin : right - begin], raw=order.kind == "logits")
                self._files.write(order, first + left - offset, rows)
            offset += count

    def sample(self, original: Callable[..., Any], runner: Any, output: Any, batch: Any) -> Any:
        orders = [order_of(rid) for rid in batch.rids or ()]
        drafts = [(i, order) for i, order in enumerate(orders) if order is not None and order.kind == "draft"]
        if not drafts:
            return original(runner, output, batch)
        places = [i for i, _ in drafts]
        rows = self._rows(output.next_token_logits[places], raw=False)
        lengths = batch.seq_lens.tolist()
        tokens = []
        for place, (i, order) in enumerate(drafts):
            row = rows[place : place + 1]
            if _writes():
                self._files.write(order, lengths[i], row)
            tokens.append(_drawn(order, row, lengths[i]))
        ids = original(runner, output, batch)
        ids[places] = torch.tensor(tokens, dtype=ids.dtype, device=ids.device)
        return ids

    def _rows(self, logits: torch.Tensor, *, raw: bool) -> torch.Tensor:
        cut = logits[:, : self._vocab_size].float()
        return cut if raw else cut.log_softmax(-1)


def _prefill(batch: Any) -> _Prefill | None:
    """Which rows the pass over `batch` computes logits of, where any was ordered.

    As in `LogitsProcessor._get_pruned_states`: of each request the tokens from its `extend_logprob_start_len` on, one
    at least; where no request wants log-probabilities, of each the last.
    """
    rids = getattr(batch, "rids", None)
    if not rids or not batch.forward_mode.is_extend() or not batch.return_logprob:
        return None
    orders = [order_of(rid) for rid in rids]
    if not any(orders):
        return None
    lengths: Sequence[int] = batch.extend_seq_lens_cpu
    starts: Sequence[int] = batch.extend_logprob_start_lens_cpu
    wanted = any(length > start for length, start in zip(lengths, starts, strict=True))
    parts = []
    for order, prefix, length, start in zip(orders, batch.extend_prefix_lens_cpu, lengths, starts, strict=True):
        count = max(length - start, 1) if wanted else 1
        parts.append((order, prefix + length - count + 1, count))
    return _Prefill(parts)


def _drawn(order: Order, row: torch.Tensor, position: int) -> int:
    if order.sampling is None or position < order.first:  # a part of a long prompt: its token is not used
        return 0
    token = choose(row, order.sampling, [position])[0]
    return token if 0 <= token < row.shape[1] else 0  # of a row of NaN, which its reader refuses


def _writes() -> bool:
    """One of the processes of a tensor-parallel model is enough."""
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().tp_rank == 0)
