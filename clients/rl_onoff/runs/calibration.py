"""Thresholds that spend a given share of tokens on the model that takes over.

The first pass is the leader alone, judged by the other model: the threshold that would have spent the share on its
texts. But once the other takes over, the texts are no longer the leader's, and what the same threshold spends on them
is another share. So the policy writes with it, and the next threshold is the one that would have spent the share on
what came out, a fixed-point iteration; of all passes that one counts whose share was closest. Nothing but signals is
looked at: no metric, no reference.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np

from rl_onoff.errors import InvalidField
from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Signals, ThresholdPolicy, initial_state, step
from rl_onoff.runs.folder import read_results
from rl_onoff.runs.sharing import Record, of_record

#: Passes of the policy itself, after that of the leader alone.
PASSES: Final = 4
#: A share this close to the budget, relative to it, ends the passes.
TOLERANCE: Final = 0.05
#: Tokens that thresholds are tried on; of more, whole results drawn by the hash of their keys.
_POSITIONS: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Trace:
    """The signals of one text, a dictionary per token, its seed, and how long its prompt was."""

    seed: int
    start: int
    signals: Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Pass:
    """A threshold, the share it would have spent on the texts before, and the share that it did spend."""

    on: float
    expected: float
    reached: float


def threshold_policy(fields: Mapping[str, Any], on: float | None = None) -> ThresholdPolicy:
    """The policy of these fields, less `budget`, with this threshold. Raises InvalidField where it has none."""
    rest = {name: value for name, value in fields.items() if name != "budget"}
    if "on" in rest:
        raise InvalidField("a policy has either `on` or a budget, which finds it", field="policy")
    if on is None and rest.get("off") is not None:
        on = rest["off"]  # the default may be on its wrong side
    policy = parse_policy(rest if on is None else rest | {"on": on})
    if not isinstance(policy, ThresholdPolicy):
        raise InvalidField(f"a policy of kind {policy.kind} has no threshold for a budget to find", field="policy")
    return policy


def traces_of(run: Path, policy: ThresholdPolicy) -> list[Trace]:
    """What a policy reads, of the results of a run: of as many as hold 2^17 tokens, the same ones at every call."""

    def ranked(record: Record) -> bytes:
        return blake2b(f"{record['id']}#{record.get('sample', 0)}".encode(), digest_size=8).digest()

    lengths = sorted((ranked(r), len(r["token_ids"])) for r in read_results(run) if "error" not in r)
    within = int(np.searchsorted(np.cumsum([length for _, length in lengths]), _POSITIONS)) + 1
    chosen = (record for record in read_results(run) if "error" not in record)
    return [_trace(record, policy) for record in heapq.nsmallest(within, chosen, key=ranked)]


def _trace(record: Record, policy: ThresholdPolicy) -> Trace:
    written = of_record(record)
    columns = {name: written.values[name] for name in policy.signals}
    # Infinite is beyond every threshold in the direction in which the signal can be it.
    infinite = {name: -np.inf if name == "delta_logp_a" else np.inf for name in columns}
    signals = [
        {name: infinite[name] if column[at] is None else float(column[at] or 0.0) for name, column in columns.items()}
        for at in range(len(written))
    ]
    return Trace(record["seed"], len(record["prompt_ids"]), signals)


def spent(policy: ThresholdPolicy, traces: Iterable[Trace]) -> float:
    """The share of tokens that the other model would lead if the texts stayed as they are."""
    tokens = taken = 0
    for trace in traces:
        state = initial_state(policy)
        for at, values in enumerate(trace.signals):
            state, lead = step(policy, state, Signals(trace.start + at, trace.seed, values))
            taken += lead == "b"
        tokens += len(trace.signals)
    return taken / tokens if tokens else 0.0


def calibrate(fields: Mapping[str, Any], budget: float, traces: Sequence[Trace]) -> tuple[float, float]:
    """The threshold whose share on these texts is closest to the budget, and that share.

    By bisection over the values the signal has: the share falls as the threshold rises, or rises with it where the
    other model leads below it.
    """
    default = threshold_policy(fields)
    sign = -1.0 if default.watched == "delta_logp_a" else 1.0
    seen = np.unique([sign * values[default.watched] for trace in traces for values in trace.signals])
    valid = [float(on) for on in seen[np.isfinite(seen)] if _allowed(fields, float(on))]
    if not valid:
        raise InvalidField("no threshold is allowed that its signal ever has", field="policy")
    if default.b_below:
        valid.reverse()  # from the most to the least that is spent
    low, high = 0, len(valid) - 1
    shares: dict[int, float] = {}

    def share(index: int) -> float:
        if index not in shares:
            shares[index] = spent(threshold_policy(fields, valid[index]), traces)
        return shares[index]

    while low < high:  # the first that spends no more than the budget
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) <= budget else (middle + 1, high)
    best = min((index for index in (low - 1, low) if index >= 0), key=lambda index: abs(share(index) - budget))
    return valid[best], share(best)


def _allowed(fields: Mapping[str, Any], on: float) -> bool:
    try:
        threshold_policy(fields, on)
    except InvalidField:
        return False
    return True


#: Lets a policy write: the number of the pass, and the policy's fields; gives its run's folder and the share it spent.
Write = Callable[[int, Mapping[str, Any]], Awaitable[tuple[Path, float]]]


async def find_threshold(fields: Mapping[str, Any], budget: float, first: Path, write: Write) -> dict[str, Any]:
    """Passes until a share is close to the budget, or a threshold comes again: `{budget, on, reached, passes}`."""
    passes: list[Pass] = []
    run = first
    for number in range(PASSES):
        on, expected = calibrate(fields, budget, traces_of(run, threshold_policy(fields)))
        if any(on == each.on for each in passes):
            break
        rest = {name: value for name, value in fields.items() if name != "budget"}
        run, reached = await write(number, rest | {"on": on})
        passes.append(Pass(on, expected, reached))
        if abs(reached - budget) <= TOLERANCE * budget:
            break
    best = min(passes, key=lambda each: abs(each.reached - budget))
    told = [asdict(each) for each in passes]
    return {"budget": budget, "on": best.on, "reached": best.reached, "passes": told}
