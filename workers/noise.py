"""Which decisions hang on rounding.

The same row computed in a pass of one token and in a pass of many differs in its last bits. A decision that a change of
that size could turn is within the noise: lookahead and lock-step, or two batches, may decide it differently, and
neither is wrong. How large the changes are is measured when a pair is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from rl_onoff.divergence import MEASURES
from rl_onoff.policy import TOKEN_SIGNALS, Lead, Policy, PolicyState, Signals
from workers.judge import measure

LOGPROB = "logprob"
#: Rényi's divergences of all orders are taken to move as far as the most of these do.
_ORDERS = (0.5, 0.9, 1.1, 2, 5)


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The largest change seen of each signal, and of a log-probability in nats; what was never measured is exact."""

    floors: Mapping[str, float]

    def doubtful(
        self, policy: Policy, before: PolicyState, signals: Signals, gaps: Mapping[Lead, float], lead: Lead
    ) -> bool:
        """Whether who led from `before` on, or the token emitted, could have been another.

        `gaps`: by how much the token of either model won. Also the other's matters where the policy looks at tokens.
        """
        looked_at: tuple[Lead, ...] = ("a", "b") if policy.signals.intersection(TOKEN_SIGNALS) else (lead,)
        return self.may_turn(policy, before, signals) or any(self.may_change(gaps[side]) for side in looked_at)

    def may_turn(self, policy: Policy, state: PolicyState, signals: Signals) -> bool:
        """Whether the policy would have wanted another leader, what it reads moved by the floors either way."""
        moves = {name: self._floor(name) for name in sorted(policy.signals | {policy.watched})}
        moved = [(name, floor) for name, floor in moves.items() if floor > 0.0]
        if not moved:
            return False
        wanted = {policy.wants(state, signals)}
        for signs in product((-1, 1), repeat=len(moved)):
            values = dict(signals.values)
            for sign, (name, floor) in zip(signs, moved, strict=True):
                values[name] += sign * floor
            wanted.add(policy.wants(state, replace(signals, values=values)))
        return len(wanted) > 1

    def may_change(self, gap: float) -> bool:
        """Whether another token was possible: two log-probabilities moved towards each other close the gap."""
        return gap < 2 * self.floors.get(LOGPROB, 0.0)

    def _floor(self, signal: str) -> float:
        return self.floors.get(signal, self.floors.get(signal.partition(":")[0], 0.0))


def measured(rows_a: tuple[Any, Any], rows_b: tuple[Any, Any]) -> dict[str, float]:
    """Floors from rows `[n, V]` of both models, each computed in two shapes of pass."""
    floors = {LOGPROB: max(_largest_change(*rows_a), _largest_change(*rows_b))}
    names = [name for name in MEASURES if name not in ("delta_logp", "top1_agree")]
    first, second = (measure(a, b, names) for a, b in zip(rows_a, rows_b, strict=True))
    floors |= {name: _largest_change(first[name], second[name]) for name in names}
    floors |= dict.fromkeys(("delta_logp_a", "delta_logp_b"), 2 * floors[LOGPROB])
    for family in ("renyi", "renyi_ba"):
        of_orders = [f"{family}:{order}" for order in _ORDERS]
        first, second = (measure(a, b, of_orders) for a, b in zip(rows_a, rows_b, strict=True))
        floors[family] = max(_largest_change(first[name], second[name]) for name in of_orders)
    floors["prob_of_a_in_b"] = floors["top_prob_b"]
    return floors


def _largest_change(left: Any, right: Any) -> float:
    with np.errstate(invalid="ignore"):  # what is infinite in both has not moved
        gap = np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64))
    return float(gap[np.isfinite(gap)].max(initial=0.0))
