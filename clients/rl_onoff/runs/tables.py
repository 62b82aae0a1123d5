"""What a study ends in: a line per condition."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rl_onoff.runs.tasks import Record


def by_seed(
    records: Iterable[Mapping[str, Any]], seeds: Sequence[int], n: int, metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of a condition's results by each seed: the share of the model that takes over, and the mean of every metric."""
    sums: dict[int, dict[str, float]] = {seed: dict.fromkeys(["", *metrics], 0.0) for seed in seeds}
    tokens, results = Counter[int](), Counter[int]()
    for record in records:
        if "error" not in record:
            seed = seeds[record["sample"] // n]
            tokens[seed] += len(record["leads"])
            results[seed] += 1
            sums[seed][""] += record["leads"].count("b")
            for name in metrics:
                sums[seed][name] += record["metrics"][name]
    return {
        str(seed): {"share": of[""] / max(1, tokens[seed]), "results": results[seed]}
        | {"metrics": {name: of[name] / results[seed] if results[seed] else None for name in metrics}}
        for seed, of in sums.items()
    }


def table(records: list[Record], metrics: list[str]) -> list[dict[str, Any]]:
    """A flat line per condition: the share of the model that takes over, and every metric with its interval.

    `recovery` of a metric is (value - A's)/(B's - A's). `budget` is the share that was aimed for, `reused` the share
    of tokens that earlier conditions had written. None stands for what is not defined or not finite.
    """
    found = {record["id"]: record["summary"].get("metrics", {}) for record in records}
    seeds = list(records[0].get("by_seed", {})) if records else []
    lines = []
    for record in records:
        line = {"condition": record["id"], "direction": record["direction"], "control_of": record["control_of"]}
        line |= {"policy": json.dumps(record["policy"]), "share": record["share"]}
        line["budget"] = record.get("calibration", {}).get("budget")
        line |= {name: record["summary"][name] for name in ("results", "failed", "tokens")}
        line["reused"] = record["summary"].get("sharing", {}).get("reused")
        for name in metrics:
            own = found[record["id"]].get(name, {})
            value, low, high = (own.get(key) for key in ("value", "low", "high"))
            line |= {name: value, f"{name} low": low, f"{name} high": high}
            alone = [found[each].get(name, {}).get("value") for each in ("a_alone", "b_alone")]
            line[f"{name} recovery"] = _recovery(value, *alone)
        for seed in seeds:
            line |= {f"{name} seed={seed}": record["by_seed"][seed]["metrics"][name] for name in metrics}
        lines.append(line)
    return lines


def _recovery(value: float | None, a: float | None, b: float | None) -> float | None:
    return None if value is None or a is None or b is None or a == b else (value - a) / (b - a)
