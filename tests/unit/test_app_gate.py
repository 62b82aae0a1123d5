"""Admission: room, turns, and what a client that asks for much leaves to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from app.services.gate import Gate, Room, asking
from rl_onoff.errors import Overloaded

MANY = Room(1000, 10**9)


class Asker:
    """One request: `went` when it has its turn, over when `done` is set."""

    def __init__(self, gate: Gate, client: str, cells: int, order: list[str]) -> None:
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._run(gate, client, cells, order))

    async def _run(self, gate: Gate, client: str, cells: int, order: list[str]) -> None:
        asking.set(client)
        async with gate.hold(cells):
            order.append(client)
            await self.done.wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_so_much_runs_so_much_waits_the_rest_is_refused_at_once() -> None:
    seen: list[tuple[int, int]] = []
    refused: list[None] = []
    gate = Gate(Room(2, 10**9), Room(3, 10**9), lambda *now: seen.append(now), lambda: refused.append(None))
    order: list[str] = []
    askers = [Asker(gate, "one", 1, order) for _ in range(20)]
    await settled()
    assert (gate.running, gate.waiting) == (2, 3)
    failed = [asker for asker in askers if asker.task.done()]
    assert len(failed) == len(refused) == 15
    error = failed[0].task.exception()
    assert isinstance(error, Overloaded)
    assert 1 <= (error.retry_after or 0) <= 60
    for asker in askers:
        asker.done.set()
    await asyncio.gather(*(asker.task for asker in askers), return_exceptions=True)
    assert (gate.running, gate.waiting, gate.running_cells, gate.waiting_cells) == (0, 0, 0, 0)
    assert seen[-1] == (0, 0)
    assert len(order) == 5


async def test_cells_count_and_what_is_larger_than_all_room_runs_alone() -> None:
    gate = Gate(Room(10, 100), MANY)
    order: list[str] = []
    small = Asker(gate, "small", 60, order)
    large = Asker(gate, "large", 1000, order)
    after = Asker(gate, "after", 1, order)  # would fit, but does not overtake
    await settled()
    assert order == ["small"]
    small.done.set()
    await settled()
    assert order == ["small", "large"]
    large.done.set()
    await settled()
    assert order == ["small", "large", "after"]
    after.done.set()
    await after.task


async def test_many_requests_of_one_client_do_not_delay_the_first_of_another() -> None:
    gate = Gate(Room(1, 10**9), MANY)
    order: list[str] = []
    askers = [Asker(gate, "greedy", 10, order) for _ in range(50)]
    await settled()
    askers += [Asker(gate, "modest", 10, order) for _ in range(3)]
    await settled()
    for asker in askers:
        asker.done.set()
    await asyncio.gather(*(asker.task for asker in askers))
    assert [i for i, client in enumerate(order) if client == "modest"][:3] == [2, 4, 6]


async def test_one_that_gives_up_while_it_waits_leaves_its_place() -> None:
    gate = Gate(Room(1, 10), Room(1, 100))
    order: list[str] = []
    first, second = Asker(gate, "a", 10, order), Asker(gate, "b", 10, order)
    await settled()
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    assert (gate.waiting, gate.waiting_cells) == (0, 0)
    third = Asker(gate, "c", 10, order)
    await settled()
    first.done.set()
    third.done.set()
    await asyncio.gather(first.task, third.task)
    assert order == ["a", "c"]


async def test_one_that_is_cancelled_in_its_very_turn_gives_it_back() -> None:
    gate = Gate(Room(1, 10), MANY)
    order: list[str] = []
    first, second, third = (Asker(gate, name, 10, order) for name in "abc")
    await settled()
    first.done.set()
    while gate.waiting == 2:  # until `a` has ended and `b` has been told
        await asyncio.sleep(0)
    second.task.cancel()
    await settled()
    assert order == ["a", "c"]
    third.done.set()
    await third.task
    assert (gate.running, gate.running_cells) == (0, 0)


STEPS = st.lists(st.tuples(st.sampled_from(["ask", "end", "cancel"]), st.integers(0, 30), st.sampled_from("xyz")))


@given(STEPS)
def test_room_is_never_exceeded_and_nothing_is_left_behind(steps: list[tuple[str, int, str]]) -> None:
    async def run() -> None:
        gate = Gate(Room(3, 40), Room(4, 60))
        askers: list[Asker] = []
        order: list[str] = []
        act: dict[str, Callable[[int, str], object]] = {
            "ask": lambda n, who: askers.append(Asker(gate, who, n, order)),
            "end": lambda n, _: askers[n % len(askers)].done.set() if askers else None,
            "cancel": lambda n, _: askers[n % len(askers)].task.cancel() if askers else None,
        }
        for step, number, client in steps:
            act[step](number, client)
            await settled()
            assert gate.running <= 3
            assert gate.running_cells <= 40 or gate.running == 1
            assert gate.waiting <= 4
            assert gate.running or not gate.waiting
        for asker in askers:
            asker.done.set()
        outcomes = await asyncio.gather(*(asker.task for asker in askers), return_exceptions=True)
        kinds = (asyncio.CancelledError, Overloaded)
        assert all(outcome is None or isinstance(outcome, kinds) for outcome in outcomes)
        assert (gate.running, gate.waiting, gate.running_cells, gate.waiting_cells) == (0, 0, 0, 0)

    asyncio.run(run())
