"""The summary of a comparison in a few lines: what a paper would quote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]


def key_numbers(summary: Found) -> Iterator[str]:
    """Lines about a summary of `divergence`; none of another's."""
    measures = summary.get("measures", {})
    for name, found in measures.items():
        yield (
            f"{name}: mean {_number(found['mean'])}{_error(found)}, median {_number(found['percentiles']['50'])}, "
            f"99% below {_number(found['percentiles']['99'])}, {_largest(found)}"
        )
    if not measures:
        return
    yield f"same best token: {_share(summary['top1'])}"
    perplexity = summary["perplexity"]
    yield "perplexity: " + ", ".join(
        f"{label} {_number(perplexity[name])}{_error(perplexity, f'{name}_')}"
        for name, label in (("a", "A"), ("b", "B"), ("ratio", "B/A"), ("difference", "B - A"))
    )
    if (correlation := perplexity["correlation"]) is not None:
        yield f"correlation of log p_A and log p_B: {correlation:.4f}"
    delta, rms = summary["delta_p"], summary["rms_delta_p"]
    yield f"p_B - p_A: mean {_number(delta['mean'])}{_error(delta)}, RMS {_number(rms['value'])}{_error(rms)}"
    for kind, measured in summary.get("noise_floor", {}).items():
        yield from _floor(kind.replace("_", " "), measured)
    clustered = summary["items"] > 1
    yield f"{summary['positions']} tokens of {summary['items']} items; ± one standard error" + (
        ", by item" if clustered else ", over tokens"
    )


def warnings(summary: Found) -> Iterator[str]:
    """What a reader has to know before he believes the numbers."""
    origins = summary.get("provenances", [])
    if origins:
        fields = [name for name in origins[0] if name != "results"]
        apart = [name for name in fields if any(each.get(name) != origins[0][name] for each in origins)]
        yield f"results of {len(origins)} origins, which differ in {', '.join(apart)}: see provenances in summary.json"


def _floor(kind: str, measured: Any) -> Iterator[str]:
    for name, found in measured.items() if isinstance(measured, Mapping) else ():
        if isinstance(found, Mapping):
            yield f"noise floor, {kind}, {name}: mean {_number(found['mean'])}, at most {_number(found['max'])}"
        elif isinstance(found, int | float):
            yield f"noise floor, {kind}, {name}: at most {_number(found)}"


def _largest(found: Found) -> str:
    at = found["max_at"]
    return f"largest {_number(found['max'])} at {at['token']!r} ({at['item']}, token {at['position']})"


def _share(found: Found) -> str:
    error = _best_error(found)
    return f"{100 * found['value']:.2f}%" + (f" ± {100 * error:.2f}%" if error is not None else "")


def _error(found: Found, prefix: str = "") -> str:
    error = _best_error(found, prefix)
    return "" if error is None else f" ± {error:.2g}"


def _best_error(found: Found, prefix: str = "") -> float | None:
    clustered: float | None = found[f"{prefix}clustered_stderr"]
    plain: float | None = found[f"{prefix}stderr"]
    return plain if clustered is None else clustered


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
