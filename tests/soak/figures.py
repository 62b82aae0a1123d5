"""Measured figures, as lines of JSON on standard output and, if `FIGURES` names one, in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def report(line: str, **figures: Any) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    text = json.dumps({"line": line, **rounded})
    print(text)
    if path := os.environ.get("FIGURES"):
        with Path(path).open("a") as file:
            file.write(text + "\n")


def percentile(values: list[float], q: float) -> float:
    """The smallest value that at least `q` per cent are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))]
