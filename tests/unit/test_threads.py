from __future__ import annotations

import threading

import pytest

from workers.threads import in_parts


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (7, 3), (3, 8), (8, 2)])
def test_parts_cover_everything_in_order(count: int, threads: int) -> None:
    parts = in_parts(lambda begin, end: list(range(begin, end)), count, threads)
    assert [i for part in parts for i in part] == list(range(count))
    assert len(parts) == min(count, threads)


def test_all_have_ended_before_anything_is_raised() -> None:
    ended = []
    here = threading.get_ident()

    def work(begin: int, end: int) -> None:
        if threading.get_ident() == here:
            raise KeyError(begin)
        threading.Event().wait(0.05)
        ended.append(begin)

    with pytest.raises(KeyError):
        in_parts(work, 2, 2)
    assert ended == [1]


def test_what_another_thread_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_parts(lambda begin, end: begin and 1 // 0, 2, 2)
