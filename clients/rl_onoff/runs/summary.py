"""What came out of a run: corpus values with bootstrap intervals over problems, pass@k, majority vote."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_onoff.data.spill import temporary
from rl_onoff.metrics import Metric, bootstrap, find, majority_vote, pass_at_k
from rl_onoff.metrics.bootstrap import Estimate, mean_of, rows_of
from rl_onoff.metrics.registry import MODEL_METRICS

Array = npt.NDArray[np.float64]


def summarise(records: Iterable[Mapping[str, Any]], metrics: Iterable[str] = ()) -> dict[str, Any]:
    """The summary of results of `sample` and `switch`; of other commands their counts alone.

    `metrics` name what was scored: the mean over samples (perplexity: over all tokens; BLEU: the corpus's), with the
    interval over problems; for a metric that is right or wrong also pass@k for k = 1, 2, 4, ... and majority vote.
    """
    names = list(metrics)
    texts = {name: find(name) for name in names if name not in MODEL_METRICS}
    with ExitStack() as stack:
        collected = {name: stack.enter_context(closing(_Collected(texts.get(name)))) for name in names}
        return _summary(records, collected)


def _summary(records: Iterable[Mapping[str, Any]], collected: Mapping[str, _Collected]) -> dict[str, Any]:
    results = failed = tokens = by_b = 0
    finished: dict[str, int] = {}
    sharing = dict.fromkeys(("results", "tokens", "whole", "a_forwards", "b_forwards"), 0)
    for record in records:
        if "error" in record:
            failed += 1
            continue
        results += 1
        tokens += record["shape"][0] if "shape" in record else len(record.get("token_ids", ()))
        by_b += str(record.get("leads", "")).count("b")
        if "shared" in record:
            _add_shared(sharing, record)
        reason = str(record.get("finish_reason", ""))
        finished[reason] = finished.get(reason, 0) + 1
        for name, each in collected.items():
            each.add(record, record.get("metrics", {}).get(name))
    summary: dict[str, Any] = {"results": results, "failed": failed, "tokens": tokens}
    if finished.keys() - {""}:
        summary["finish_reasons"] = finished
    if sharing["results"]:
        summary["sharing"] = sharing | {"reused": sharing["tokens"] / tokens if tokens else 0.0}
    if by_b:
        summary["b_fraction"] = by_b / tokens
    if results and collected:
        summary["metrics"] = {name: each.summary() for name, each in collected.items()}
    return summary


def _add_shared(sharing: dict[str, int], record: Mapping[str, Any]) -> None:
    """Tokens that earlier runs had written, generations that needed none of their own, and the passes of the others."""
    sharing["results"] += 1
    sharing["tokens"] += record["shared"]
    sharing["whole"] += "passes" not in record
    for name, count in zip(("a_forwards", "b_forwards"), record.get("passes", ()), strict=False):
        sharing[name] += count


class _Collected:
    """One metric's sums per problem and sample: `[S]` each, a few numbers, not the texts. Close it.

    They wait on the disk, and in memory are a few numbers per problem once the summary is made. Results come in the
    order in which requests ended. What is made of them goes by problem and sample, so that the same results always give
    the same summary, and runs over the same problems draw the same of them again.
    """

    def __init__(self, metric: Metric | None) -> None:
        self._metric = metric
        self._database = temporary()
        self._database.execute(
            "CREATE TABLE sums (problem TEXT, sample INT, sums BLOB, answer TEXT, score REAL,"
            " PRIMARY KEY (problem, sample)) WITHOUT ROWID"
        )

    def close(self) -> None:
        self._database.close()

    def add(self, record: Mapping[str, Any], value: float | None) -> None:
        problem, sample, metric = str(record["id"]), int(record.get("sample", 0)), self._metric
        if value is None and metric is not None:
            value = metric.checked(record["text"], record.get("reference"))
        sums = sums_of(metric, record, value)
        answer, score = None, None
        if metric is not None and metric.binary:
            answer = metric.answer(record["text"]) if metric.answer is not None else None
            score = float(value or 0.0)
        row = (_sortable(problem), sample, sums.tobytes(), answer and _sortable(answer), score)
        self._database.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?)", row)

    def summary(self) -> dict[str, Any]:
        flat, problems = array("d"), 0
        for samples in self._by_problem():
            flat.extend(np.sum([np.frombuffer(sums) for _, sums, _, _ in samples], axis=0))
            problems += 1
        sums = np.frombuffer(flat).reshape(problems, -1)
        found = asdict(estimate(self._metric, sums))
        if self._metric is not None and self._metric.binary:
            found |= self._groups(self._metric)
        return {name: _finite(value) for name, value in found.items()}

    def _by_problem(self) -> Iterator[list[tuple[str, bytes, Any, Any]]]:
        """The samples of each problem, both in order: problem, sums, answer, score."""
        rows = self._database.execute("SELECT problem, sums, answer, score FROM sums ORDER BY problem, sample")
        for _, samples in groupby(rows, itemgetter(0)):
            yield list(samples)

    def _groups(self, metric: Metric) -> dict[str, Any]:
        most = min(map(len, self._by_problem()))
        chances = {2**power: array("d") for power in range(most.bit_length())}
        votes = array("d")
        for group in self._by_problem():
            right = sum(score == 1.0 for *_, score in group)
            for k, values in chances.items():
                values.append(pass_at_k(len(group), right, k))
            at = majority_vote([answer for *_, answer, _ in group])
            votes.append(0.0 if at is None else group[at][-1])
        found: dict[str, Any] = {"pass_at_k": {str(k): asdict(mean_of(values)) for k, values in chances.items()}}
        if most > 1 and metric.answer is not None:
            found["majority_vote"] = asdict(mean_of(votes))
        return found


def sums_of(metric: Metric | None, record: Mapping[str, Any], value: float | None) -> Array:
    """What of a result adds up to a corpus value, `[S]`. No metric: perplexity, None where it is infinite."""
    if metric is None:
        count = len(record["token_ids"])
        return np.array([math.inf if value is None else math.log(value) * count, float(count)])
    if metric.statistics is not None:
        return np.asarray(metric.statistics(record["text"], record.get("reference")), dtype=np.float64)
    return np.array([value, 1.0], dtype=np.float64)


def estimate(metric: Metric | None, sums: Array) -> Estimate:
    """The corpus value of sums by problem, `[problems, S]`, with its interval."""
    if metric is None:
        return bootstrap(sums, lambda each: np.exp(each[..., 0] / each[..., 1]))
    if metric.statistics is not None:
        return bootstrap(sums, rows_of(metric))
    return bootstrap(sums, lambda each: each[..., 0] / each[..., 1])


def _sortable(text: str) -> bytes | str:
    """As SQLite takes it: in the order of code points, as Python's; what is no valid Unicode as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
