"""Which of a pair's workers gets a job."""

from __future__ import annotations

from typing import Any, cast

import pytest

from app.pair_config import PairConfig
from app.services.replicas import Replicas
from app.services.telemetry import Telemetry
from app.services.worker import LoadedPair, PairWorker
from rl_onoff.errors import WorkerLost, WorkerUnavailable
from workers.wire import ModelInfo, PairInfo

CONFIG = PairConfig(name="p", a={"path": "a"}, b={"path": "b"})  # type: ignore[arg-type]


def info(fingerprint: str = "f", noise: float = 0.0) -> PairInfo:
    model = ModelInfo("m", "m", None, fingerprint, "float32", "cpu", 3, 3, 10, [0], None, 0)
    return PairInfo("p", "table", "1", model, model, "{}", {}, noise={"js": noise})


class Worker:
    def __init__(self, replicas: Replicas, number: int) -> None:
        self.replica, self.replicas = str(number), replicas
        self.outstanding = self.turn = 0
        self.silent = False
        self.state = "ready"
        self.info: PairInfo | None = info(noise=number)  # each measures its own

    @property
    def order(self) -> tuple[bool, int, int]:
        return self.silent, self.outstanding, self.turn

    @property
    def answering(self) -> LoadedPair | None:
        if self.state != "ready" or self.info is None:
            return None
        return LoadedPair(CONFIG, self.info, cast(Any, None), cast(Any, None), cast(PairWorker, self))


@pytest.fixture
def replicas() -> Replicas:
    made = Replicas(CONFIG, Telemetry(), 0)
    made.workers = [cast(PairWorker, Worker(made, number)) for number in range(3)]
    return made


def chosen(replicas: Replicas) -> str:
    return replicas.loaded().worker.replica


def test_the_least_loaded_is_chosen_and_equals_take_turns(replicas: Replicas) -> None:
    first, second, third = replicas.workers
    with replicas.in_hand(first), replicas.in_hand(first), replicas.in_hand(third):
        assert chosen(replicas) == "1"
        with replicas.in_hand(second), replicas.in_hand(second):
            assert chosen(replicas) == "2"
        assert b'rl_onoff_worker_outstanding{pair="p",replica="0"} 2.0' in replicas.telemetry.page()
    turns = []
    for _ in range(6):
        pair = replicas.loaded()
        turns.append(pair.worker.replica)
        with pair.in_hand():
            pass
    assert sorted(turns[:3]) == ["0", "1", "2"]
    assert turns[3:] == turns[:3]
    assert [worker.outstanding for worker in replicas.workers] == [0, 0, 0]


def test_a_job_that_fails_is_in_hand_no_longer(replicas: Replicas) -> None:
    with pytest.raises(WorkerLost), replicas.in_hand(replicas.workers[0]):
        raise WorkerLost("gone")
    assert replicas.workers[0].outstanding == 0


def test_one_that_is_silent_comes_last(replicas: Replicas) -> None:
    cast(Any, replicas.workers[0]).silent = True
    with replicas.in_hand(replicas.workers[1]), replicas.in_hand(replicas.workers[2]):
        assert chosen(replicas) != "0"


def test_the_best_state_of_any_is_the_pairs(replicas: Replicas) -> None:
    for states, best in (
        (("lost", "ready", "failed"), "ready"),
        (("lost", "starting", "failed"), "lost"),
        (("starting", "failed", "failed"), "starting"),
        (("failed", "failed", "failed"), "failed"),
    ):
        for worker, state in zip(replicas.workers, states, strict=True):
            cast(Any, worker).state = state
        assert replicas.state == best
        if best != "ready":
            with pytest.raises(WorkerUnavailable):
                replicas.loaded()


async def test_a_job_goes_on_where_its_models_are(replicas: Replicas, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = (cast(Any, worker) for worker in replicas.workers)
    held = first.answering
    first.state = "lost"
    second.info = info("retrained")
    third.outstanding = 9
    replicas.check_alike()
    assert "different models" in caplog.text
    assert (await held.revived()).worker is third
    assert held.routed().worker is third
    assert replicas.loaded().worker is second
    third.state = "lost"
    assert held.routed() is held
    with pytest.raises(WorkerLost, match="its models changed"):
        await held.revived()
    second.state = "failed"
    with pytest.raises(WorkerLost, match="died while it held"):
        await held.revived()
