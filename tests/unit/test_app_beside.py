from __future__ import annotations

import threading

import pytest

from app.services.beside import SHORT, beside


@pytest.mark.parametrize(("values", "on_loop"), [(0, True), (SHORT, True), (SHORT + 1, False)])
async def test_only_long_work_leaves_the_event_loop(values: int, on_loop: bool) -> None:
    where = await beside(values, threading.get_ident)
    assert (where == threading.get_ident()) is on_loop


async def test_what_it_raises_comes_through() -> None:
    for values in (0, SHORT + 1):
        with pytest.raises(ZeroDivisionError):
            await beside(values, lambda: 1 // 0)
