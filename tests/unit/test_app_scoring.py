"""Metrics of texts take their time beside everything else, and not a text longer than anybody waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from app.config import Limits
from app.services import scoring
from app.services.scoring import Metrics, Written
from rl_onoff.errors import LimitExceeded
from rl_onoff.metrics import Metric, registry
from rl_onoff.schemas import GenerateRequest

SAMPLES = [Written(0, f"text {index}", [-0.5]) for index in range(50)]


class Slow:
    """A metric that waits for `go`, but a moment at most; `calls` it had."""

    def __init__(self, seconds: float) -> None:
        self.calls = 0
        self.go = threading.Event()
        self._seconds = seconds

    def score(self, text: str, reference: str | None) -> float:
        self.calls += 1
        self.go.wait(self._seconds)
        return float(len(text))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow(0.2)
    monkeypatch.setitem(registry._registered, "slow", Metric("slow", found.score, needs_reference=False))
    yield found
    found.go.set()


def request(*metrics: str, references: list[str] | None = None) -> GenerateRequest:
    return GenerateRequest(model="m", prompt="a", metrics=list(metrics), references=references)


async def test_who_leaves_has_no_more_of_his_texts_scored(slow: Slow) -> None:
    metrics = await Metrics.of(request("slow"), Limits())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(metrics.scores(SAMPLES), 0.05)
    await asyncio.sleep(0.5)
    assert slow.calls == 1


async def test_nobody_else_waits_for_metrics_that_take_long(slow: Slow) -> None:
    metrics = await Metrics.of(request("slow"), Limits())
    long = [asyncio.create_task(metrics.scores(SAMPLES)) for _ in range(40)]
    await asyncio.sleep(0.05)
    begun = time.monotonic()
    assert await asyncio.to_thread(lambda: 1) == 1
    none = await Metrics.of(request(), Limits())
    assert await none.scores(SAMPLES[:2]) == ([{}, {}], {})
    own = await Metrics.of(request("perplexity"), Limits())
    each, overall = await own.scores(SAMPLES[:1])
    assert each == [overall]
    assert time.monotonic() - begun < 0.15
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)


async def test_scores_and_what_they_come_to(slow: Slow) -> None:
    slow.go.set()
    metrics = await Metrics.of(request("perplexity", "slow", "exact_match", references=["text 1"]), Limits())
    each, overall = await metrics.scores(SAMPLES[:2])
    assert each == [
        {"perplexity": pytest.approx(1.6487, abs=1e-4), "slow": 6.0, "exact_match": float(index == 1)}
        for index in range(2)
    ]
    assert list(overall.values()) == [each[0]["perplexity"], 6.0, 0.5]


async def test_references_have_a_length() -> None:
    with pytest.raises(LimitExceeded, match="32769 characters exceed the limit of 32768") as caught:
        await Metrics.of(request("exact_match", references=["a" * 32769]), Limits())
    assert caught.value.extensions["errors"][0]["field"] == "references.0"


async def test_what_compares_all_words_has_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_WORD_PAIRS", 100)
    for name, fits in (("rougeL", False), ("rougeLsum", False), ("rouge1", True), ("exact_match", True)):
        metrics = await Metrics.of(request(name, references=["1 2,3"]), Limits())
        metrics.check([33])
        if fits:
            metrics.check([34])
            continue
        with pytest.raises(LimitExceeded, match=r"102 pairs .* exceed the limit of 100") as caught:
            metrics.check([34])
        assert caught.value.extensions["errors"][0]["field"] == "references.0"
