"""What came out of a run: corpus values with bootstrap intervals over problems, pass@k, majority vote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from rl_onoff.metrics import Metric, bootstrap, find, majority_vote, pass_at_k
from rl_onoff.metrics.bootstrap import Array, mean_of, rows_of
from rl_onoff.metrics.registry import MODEL_METRICS

_Key = TypeVar("_Key", int, str)
_Value = TypeVar("_Value")


def summarise(records: Iterable[Mapping[str, Any]], metrics: Iterable[str] = ()) -> dict[str, Any]:
    """The summary of results of `sample` and `switch`; of other commands their counts alone.

    `metrics` name what was scored: the mean over samples (perplexity: over all tokens; BLEU: the corpus's), with the
    interval over problems; for a metric that is right or wrong also pass@k for k = 1, 2, 4, ... and majority vote.
    """
    names = list(metrics)
    texts = {name: find(name) for name in names if name not in MODEL_METRICS}
    collected = {name: _Collected(texts.get(name)) for name in names}
    results = failed = tokens = by_b = 0
    finished: dict[str, int] = {}
    for record in records:
        if "error" in record:
            failed += 1
            continue
        results += 1
        tokens += len(record.get("token_ids", ()))
        by_b += str(record.get("leads", "")).count("b")
        reason = str(record.get("finish_reason", ""))
        finished[reason] = finished.get(reason, 0) + 1
        for name, each in collected.items():
            each.add(record, record.get("metrics", {}).get(name))
    summary: dict[str, Any] = {"results": results, "failed": failed, "tokens": tokens}
    if finished.keys() - {""}:
        summary["finish_reasons"] = finished
    if by_b:
        summary["b_fraction"] = by_b / tokens
    if results and names:
        summary["metrics"] = {name: each.summary() for name, each in collected.items()}
    return summary


class _Collected:
    """One metric's sums per problem and sample: `[S]` each, a few numbers, not the texts.

    Results come in the order in which requests ended. What is made of them goes by problem and sample, so that the same
    results always give the same summary, and runs over the same problems draw the same of them again.
    """

    def __init__(self, metric: Metric | None) -> None:
        self._metric = metric
        self._sums: dict[str, dict[int, Array]] = {}
        self._answers: dict[str, dict[int, tuple[str | None, float]]] = {}

    def add(self, record: Mapping[str, Any], value: float | None) -> None:
        problem, sample, metric = str(record["id"]), int(record.get("sample", 0)), self._metric
        if value is None and metric is not None:
            value = metric.checked(record["text"], record.get("reference"))
        if metric is None:  # perplexity: None where it is infinite
            count = len(record["token_ids"])
            sums = np.array([math.inf if value is None else math.log(value) * count, count])
        elif metric.statistics is not None:
            sums = np.asarray(metric.statistics(record["text"], record.get("reference")), dtype=np.float64)
        else:
            sums = np.array([value, 1.0])
        self._sums.setdefault(problem, {})[sample] = sums
        if metric is not None and metric.binary:
            answer = metric.answer(record["text"]) if metric.answer is not None else None
            self._answers.setdefault(problem, {})[sample] = (answer, float(value or 0.0))

    def summary(self) -> dict[str, Any]:
        sums = np.stack([np.sum(_in_order(samples), axis=0) for samples in _in_order(self._sums)])
        if self._metric is None:
            found = asdict(bootstrap(sums, lambda each: np.exp(each[..., 0] / each[..., 1])))
        elif self._metric.statistics is not None:
            found = asdict(bootstrap(sums, rows_of(self._metric)))
        else:
            found = asdict(bootstrap(sums, lambda each: each[..., 0] / each[..., 1]))
        if self._answers:
            found |= self._groups()
        return {name: _finite(value) for name, value in found.items()}

    def _groups(self) -> dict[str, Any]:
        groups = [_in_order(samples) for samples in _in_order(self._answers)]
        most = min(map(len, groups))
        ks = [2**power for power in range(most.bit_length())]
        found: dict[str, Any] = {
            "pass_at_k": {
                str(k): asdict(mean_of([pass_at_k(len(g), sum(s == 1.0 for _, s in g), k) for g in groups])) for k in ks
            }
        }
        if most > 1 and self._metric is not None and self._metric.answer is not None:
            votes = [(group, majority_vote([answer for answer, _ in group])) for group in groups]
            found["majority_vote"] = asdict(mean_of([0.0 if at is None else group[at][1] for group, at in votes]))
        return found


def _in_order(of: Mapping[_Key, _Value]) -> list[_Value]:
    return [of[key] for key in sorted(of)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
