"""`/generate`'s metrics: perplexity from log-probabilities, all others from texts, beside everything else."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from app.config import Limits
from app.services.beside import beside
from app.services.nulls import finite
from app.services.prompts import within
from rl_onoff.errors import InvalidField, MissingDependency
from rl_onoff.metrics import Metric, find
from rl_onoff.metrics.registry import MODEL_METRICS
from rl_onoff.schemas import GenerateRequest

T = TypeVar("T")
Scores = dict[str, float | None]

#: A text that is being scored cannot be stopped. So its like has threads of its own: whatever takes long there, no
#: other request waits for it.
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="metrics")
#: How long scores are made before anyone looks whether they are still wanted.
_TURN_SECONDS: Final = 0.02
#: Words of a text times words of its reference, for metrics that compare each with each: two seconds and 128 MiB.
_WORD_PAIRS: Final = 1 << 24
_WORD = re.compile(r"[A-Za-z0-9]+")


class Written(NamedTuple):
    """A sample to be scored."""

    prompt_index: int
    text: str
    logprobs: list[float]


class Metrics:
    """Those a request asks for, which there are."""

    def __init__(self, request: GenerateRequest) -> None:
        self._names = request.metrics
        self._references = request.references
        self._of_texts = {
            name: _metric(index, name, request.references)
            for index, name in enumerate(request.metrics)
            if name not in MODEL_METRICS
        }

    @classmethod
    async def of(cls, request: GenerateRequest, limits: Limits) -> Metrics:
        for index, reference in enumerate(request.references or ()):
            within(len(reference), limits.reference_chars, f"references.{index}", "characters")
        if all(name in MODEL_METRICS for name in request.metrics):
            return cls(request)
        return await _in_thread(lambda: cls(request))  # libraries are imported at first use

    def check(self, max_tokens: Sequence[int]) -> None:
        """Raises LimitExceeded where a text of so many tokens for each prompt may be too long for a metric."""
        if not any(metric.pairwise for metric in self._of_texts.values()):
            return
        for index, (reference, tokens) in enumerate(zip(self._references or (), max_tokens, strict=True)):
            words = sum(1 for _ in _WORD.finditer(reference))
            what = f"pairs of a word ({words}) and a token to generate ({tokens})"
            within(words * tokens, _WORD_PAIRS, f"references.{index}", what)

    async def scores(self, samples: Sequence[Written]) -> tuple[list[Scores], Scores]:
        """Of each sample, and over all: perplexity over all tokens, BLEU the corpus's, the mean of the others."""
        found: list[Scores] = [{} for _ in samples]
        sums: dict[str, list[Sequence[float]]] = {name: [] for name in self._of_texts}
        if self._of_texts:
            steps = self._steps(samples, found, sums)
            while not await _in_thread(lambda: _took_all(steps)):
                pass  # here is where a request ends that nobody waits for any more
        if "perplexity" in self._names:
            tokens = sum(len(sample.logprobs) for sample in samples)
            each, over_all = await beside(tokens, lambda: _perplexities(samples))
            for scores, value in zip(found, each, strict=True):
                scores["perplexity"] = value
        overall: Scores = {
            name: self._of_texts[name].combine([sum(column) for column in zip(*sums[name], strict=True)])
            if name in self._of_texts
            else over_all
            for name in self._names
        }
        return [{name: scores[name] for name in self._names} for scores in found], overall

    def _steps(
        self, samples: Sequence[Written], found: list[Scores], sums: dict[str, list[Sequence[float]]]
    ) -> Iterator[None]:
        """Fills `found` and `sums`, a metric of a text at each step."""
        for sample, scores in zip(samples, found, strict=True):
            reference = None if self._references is None else self._references[sample.prompt_index]
            for name, metric in self._of_texts.items():
                score = scores[name] = metric.checked(sample.text, reference)
                own = (score, 1.0) if metric.statistics is None else metric.statistics(sample.text, reference)
                sums[name].append(own)
                yield


def _took_all(steps: Iterator[None]) -> bool:
    """Take steps for a turn; whether there are no more."""
    until = time.monotonic() + _TURN_SECONDS
    return all(time.monotonic() < until for _ in steps)


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


def _metric(index: int, name: str, references: list[str] | None) -> Metric:
    """The metric of this name, if the service has it and the request what it needs."""
    try:
        metric = find(name)
    except InvalidField as error:
        found = error.extensions["errors"][0]["message"]
        raise InvalidField(found, field=f"metrics.{index}") from None
    except MissingDependency as error:
        raise InvalidField(f"the service cannot compute it: {error.detail}", field=f"metrics.{index}") from error
    if metric.needs_reference and references is None:
        raise InvalidField(f"{name} needs references, one per prompt", field="references")
    return metric


def _perplexities(samples: Sequence[Written]) -> tuple[list[float | None], float | None]:
    """Of each sample, and of all their tokens."""
    every = [value for sample in samples for value in sample.logprobs]
    return [_perplexity(sample.logprobs) for sample in samples], _perplexity(every)


def _perplexity(logprobs: list[float]) -> float | None:
    try:
        return finite(math.exp(-sum(logprobs) / len(logprobs)))
    except OverflowError:
        return None
