"""How a judged draft is walked: the heart of lookahead, wherever the rows are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rl_onoff.policy import Policy, PolicyState, Signals, step
from workers.judge import Judgement
from workers.noise import NoiseFloor


@dataclass(frozen=True, slots=True)
class Round:
    """What a round emits: lock-step's tokens, `state` after them, and how many of its decisions are `doubtful`."""

    ids: list[int]
    leads: str
    values: dict[str, list[float]]
    state: PolicyState
    doubtful: int
    survived: bool  # the last token is as drafted, too


def walk_draft(
    policy: Policy,
    state: PolicyState,
    draft: Sequence[int],
    verdict: Judgement,
    first: int,
    seed: int,
    eos: Collection[int],
    noise: NoiseFloor,
) -> Round:
    """Walk over a draft for positions `first`.. up to the first token that is not as drafted, or one of `eos`."""
    ids: list[int] = []
    leads, doubtful = "", 0
    recorded: dict[str, list[float]] = defaultdict(list)
    for i, drafted in enumerate(draft):
        known = {name: column[i] for name, column in verdict.values.items()}
        signals = Signals(first + i, seed, known)
        before, (state, lead) = state, step(policy, state, signals)
        doubtful += noise.doubtful(policy, before, signals, verdict.gaps(i), lead)
        ids.append(verdict.token(i, lead))
        leads += lead
        for name, value in verdict.recorded(i, lead).items():
            recorded[name].append(value)
        if ids[-1] != drafted or ids[-1] in eos:
            break
    return Round(ids, leads, recorded, state, doubtful, ids[-1] == draft[len(ids) - 1])
