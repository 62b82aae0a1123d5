"""Memory files that rows come back in: anonymous, so that nothing is left of them, and reused, for speed."""

from __future__ import annotations

import itertools
import math
import mmap
import os

import torch

_numbers = itertools.count()


class RowFile:
    """A growing anonymous file of float32; other processes of this user reach it as `/proc/PID/fd/DESCRIPTOR`."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.descriptor = os.memfd_create("rl-onoff-rows", os.MFD_CLOEXEC)
        self._values = torch.empty(0)

    def rows(self, count: int, width: int) -> torch.Tensor:
        """Its first `count` rows, `[count, width]`, all NaN."""
        need = count * width
        if need > len(self._values):
            os.ftruncate(self.descriptor, 4 * need)
            self._values = torch.frombuffer(mmap.mmap(self.descriptor, 4 * need), dtype=torch.float32)
        return self._values[:need].view(count, width).fill_(math.nan)

    def close(self) -> None:
        os.close(self.descriptor)


class RowFiles:
    """As many files as calls are under way; a file is another call's only once the server has answered the last."""

    def __init__(self) -> None:
        self._free: list[RowFile] = []
        self._all: list[RowFile] = []

    def take(self) -> RowFile:
        if not self._free:
            self._free.append(RowFile())
            self._all.append(self._free[-1])
        return self._free.pop()

    def give_back(self, file: RowFile) -> None:
        self._free.append(file)

    def close(self) -> None:
        for file in self._all:
            file.close()
        self._all, self._free = [], []
