"""Recordings on a processor, as strict as CUDA graphs: the same operations on the same memory, nothing of Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

#: What would make the host wait for a result, which no recording can.
_LOOKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Tape(TorchDispatchMode):
    """Keeps the operations it sees, down to which tensors they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse(func)
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        """All of it again. Tensors that were there before are read and written where they are."""
        made: dict[int, torch.Tensor] = {}

        def current(tensor: torch.Tensor) -> torch.Tensor:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, out in self.steps:
            new = func(*tree_map_only(torch.Tensor, current, args), **tree_map_only(torch.Tensor, current, kwargs))
            for before, after in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                if isinstance(before, torch.Tensor):
                    made[id(before)] = after


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse(func)
        return func(*args, **(kwargs or {}))


def _refuse(func: Any) -> None:
    if func in _LOOKS:
        raise RuntimeError(f"{func} looks at a result half-way")


class TapeRecorder:
    """What `graphs.CudaRecorder` is, for a processor. Unlike those it computes while it records."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            run()
        return tape.play

    def rehearsal(self) -> Any:
        return _Watch()
