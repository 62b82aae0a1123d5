"""The gate: what runs, what waits, what is refused, and in which order."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from app.services.gate import Gate, Ticket, cost
from rl_onoff.errors import Overloaded
from workers.wire import Compare, Generate, SamplingParams, Score, SwitchGenerate, SwitchScore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Requests of one job each, that run until they are told to end."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.order: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, client: str = "c", amount: int = 1) -> None:
        """Raises Overloaded if it is refused."""
        ticket = Ticket(self.gate, client, amount)
        ticket.reserve()
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, ticket, amount))
        await asyncio.sleep(0)

    async def _run(self, name: str, ticket: Ticket, amount: int) -> None:
        try:
            async with ticket.turn(amount):
                self.order.append(name)
                await self._ends[name].wait()
        finally:
            ticket.close()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self._tasks[name]
            await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)

    @property
    def running(self) -> list[str]:
        return [name for name in self.order if not self._tasks[name].done()]


def gate(running: int = 2, queued: int = 3, sequences: int = 100) -> Gate:
    return Gate(running=running, queued=queued, sequences=sequences, clock=Clock())


def state(gate: Gate) -> tuple[int, int, int, int]:
    return gate.running, gate.running_cost, gate.queued, gate.queued_cost


async def test_what_fits_runs_the_rest_waits_and_what_is_too_much_is_refused() -> None:
    crowd = Crowd(gate())
    for name in "abcde":
        await crowd.ask(name)
    assert (crowd.order, state(crowd.gate)) == (["a", "b"], (2, 2, 3, 3))
    with pytest.raises(Overloaded) as refused:
        await crowd.ask("f")
    assert refused.value.retry_after == 1
    await crowd.end("b")
    await crowd.ask("g")
    assert (crowd.order, state(crowd.gate)) == (["a", "b", "c"], (2, 2, 3, 3))
    await crowd.end("a", "c", "d", "e", "g")
    assert state(crowd.gate) == (0, 0, 0, 0)
    assert not crowd.gate._clients


async def test_a_flood_neither_holds_up_nor_shuts_out_another_client() -> None:
    crowd = Crowd(gate(running=1, queued=1000))
    for number in range(1001):
        await crowd.ask(f"flood{number}", "flood")
    with pytest.raises(Overloaded):
        await crowd.ask("more", "flood")
    for number in range(3):
        await crowd.ask(f"other{number}", "other")
    for _ in range(6):
        await crowd.end(crowd.order[-1])
    assert crowd.order == ["flood0", "other0", "flood1", "other1", "flood2", "other2", "flood3"]


async def test_fair_is_by_cost_not_by_number() -> None:
    crowd = Crowd(gate(running=4, queued=1000))
    for number in range(4):
        await crowd.ask(f"large{number}", "large", 4)
    for number in range(12):
        await crowd.ask(f"small{number}", "small", 1)
    for _ in range(14):
        await crowd.end(crowd.running[0])
    first = [name.rstrip("0123456789") for name in crowd.order[1:11]]
    assert first == ["small"] * 4 + ["large"] + ["small"] * 4 + ["large"]


async def test_who_was_away_has_saved_nothing_up() -> None:
    crowd = Crowd(gate(running=1, queued=100))
    for number in range(10):
        await crowd.ask(f"a{number}", "a")
    for number in range(5):
        await crowd.end(f"a{number}")
    for number in range(3):
        await crowd.ask(f"b{number}", "b")
    for _ in range(5):
        await crowd.end(crowd.order[-1])
    assert crowd.order[5:] == ["a5", "b0", "a6", "b1", "a7", "b2"]


async def test_what_is_larger_than_everything_runs_alone() -> None:
    crowd = Crowd(gate(running=2, queued=3))
    await crowd.ask("a")
    await crowd.ask("whale", amount=50)
    with pytest.raises(Overloaded):
        await crowd.ask("second whale", amount=50)
    await crowd.ask("b", "other")
    assert crowd.order == ["a", "b"]  # served least, and it fits
    await crowd.end("a", "b")
    await crowd.ask("c", "other")
    assert (crowd.order[2:], state(crowd.gate)) == (["whale"], (1, 50, 1, 1))
    await crowd.end("whale")
    assert crowd.order[-1] == "c"


async def test_nothing_may_wait_where_no_queue_is_allowed() -> None:
    crowd = Crowd(gate(running=2, queued=0))
    await crowd.ask("whale", amount=50)
    with pytest.raises(Overloaded):
        await crowd.ask("a")
    await crowd.end("whale")
    await crowd.ask("a")
    assert crowd.order == ["whale", "a"]


async def test_who_gives_up_waiting_makes_room() -> None:
    crowd = Crowd(gate())
    for name in "abcde":
        await crowd.ask(name)
    await crowd.cancel("c")
    await crowd.ask("f")
    await crowd.end("a")
    await crowd.cancel("b")
    assert (crowd.order, state(crowd.gate)) == (["a", "b", "d", "e"], (2, 2, 1, 1))
    await crowd.end("d", "e", "f")
    assert state(crowd.gate) == (0, 0, 0, 0)


async def test_a_batch_is_accepted_as_one_and_takes_its_turns_one_by_one() -> None:
    crowd = Crowd(gate(running=2, queued=4, sequences=1))
    with ExitStack() as stack:
        batch = stack.enter_context(crowd.gate.ticket("batch", 6))
        batch.reserve()
        with pytest.raises(Overloaded):
            await crowd.ask("too much", "batch")
        async with batch.turn(2):
            await crowd.ask("other", "other")
            assert state(crowd.gate) == (1, 2, 2, 5)
        await asyncio.sleep(0)
        assert crowd.order == ["other"]
        await crowd.end("other")
        async with batch.turn(2):
            assert state(crowd.gate) == (1, 2, 1, 2)
    assert state(crowd.gate) == (0, 0, 0, 0)


async def test_retry_after_follows_the_pace() -> None:
    crowd = Crowd(gate(running=1, queued=8))
    for number in range(9):
        await crowd.ask(str(number))
    crowd.gate._clock.now = 4.0  # type: ignore[attr-defined]
    await crowd.end("0")
    await crowd.ask("9")
    with pytest.raises(Overloaded) as refused:
        await crowd.ask("10")
    assert refused.value.retry_after == 16  # eight wait, one takes 4 s


def test_cost_is_tokens_times_vocabulary_for_every_model() -> None:
    sampling, ids = SamplingParams(), [1, 2, 3]
    assert cost(Generate("a", ids, 7, sampling), 10) == 100
    assert cost(SwitchGenerate(ids, 7, sampling, {}), 10) == 200
    assert cost(Score("a", ids, 1), 10) == 30
    assert cost(SwitchScore(ids, 1, sampling, {}), 10) == 60
    assert cost(Compare(ids, 1, [*ids, 4], 2, []), 10) == 70
