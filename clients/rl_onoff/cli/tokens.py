"""Tokens in colour: who led them, and how far apart the models were.

A's tokens are plain, B's bold and blue; the background grows warmer with the divergence, or, where the policy watches a
probability that asks for B when it is low, as that falls. Off a terminal the text alone is written, byte for byte.
"""

from __future__ import annotations

import math
from typing import Final

from rich.console import Console
from rich.text import Text

from rl_onoff.kinds import BUILT_IN
from rl_onoff.policy import ThresholdPolicy
from rl_onoff.schemas import Switch, SwitchResponse, SwitchToken

#: Divergence in nats from which on a background is used. JS ends at ln 2 = 0.69; other measures go on.
SHADES: Final = ((0.3, "#ff9f6b"), (0.1, "#ffd166"), (0.02, "#fff3b0"))
#: Probability up to which a background is used, where a low one asks for B.
LOW_SHADES: Final = ((0.1, "#ff9f6b"), (0.4, "#ffd166"), (0.7, "#fff3b0"))
MARKS: Final = {"a": "◂", "b": "▸"}

# Control characters of a model's text have no business in a terminal: they are shown, not obeyed.
_SHOWN: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_SHOWN_C1: Final = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def low_means_apart(kind: object) -> bool:
    """Whether this kind of policy watches a probability, which is low where the models are apart."""
    policy = BUILT_IN.get(kind) if isinstance(kind, str) else None
    return policy is not None and issubclass(policy, ThresholdPolicy) and policy.b_below


def style_of(lead: str, divergence: float | None, *, low: bool = False) -> str:
    """The rich style of a token; None is infinite. `low`: it is a probability, and warm where it is low.

    A log-ratio of the two models (`delta_logp_a` is negative where B avoids A's token) counts by its size.
    """
    value = math.inf if divergence is None else abs(divergence)
    if low:
        shade = next((colour for most, colour in LOW_SHADES if value <= most), None)
    else:
        shade = next((colour for least, colour in SHADES if value >= least), None)
    if shade is None:
        return "bold blue" if lead == "b" else ""
    return f"{'bold blue3' if lead == 'b' else 'black'} on {shade}"


class TokenPrinter:
    """Writes tokens as they come; for `low` see `style_of`."""

    def __init__(self, console: Console, *, low: bool = False) -> None:
        self._console = console
        self._low = low

    def token(self, event: SwitchToken) -> None:
        """One token."""
        if not self._console.is_terminal:
            self._console.file.write(event.text)
            self._console.file.flush()
            return
        # A newline with a background would paint the rest of the line.
        for index, line in enumerate(event.text.translate(_SHOWN | _SHOWN_C1).split("\n")):
            if index:
                self._console.print()
            self._console.print(Text(line, style=style_of(event.lead, event.divergence, low=self._low)), end="")

    def switch(self, event: Switch) -> None:
        """A mark where the lead changes, on a terminal."""
        if self._console.is_terminal:
            self._console.print(Text(MARKS[event.to], style="dim"), end="")

    def end(self) -> None:
        """End the last line."""
        if self._console.is_terminal:
            self._console.print()
        else:
            self._console.file.write("\n")


def closing_line(result: SwitchResponse) -> str:
    """What there is to say about a run in one line."""
    by_b = result.leads.count("b")
    return (
        f"{len(result.token_ids)} tokens, {by_b} by B ({100 * result.b_fraction:.1f}%), "
        f"{len(result.switches)} switches, finished by {result.finish_reason}, seed {result.seed}"
    )
