"""The summary of a comparison in a few lines: what a paper would quote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]


def key_numbers(summary: Found) -> Iterator[str]:
    """Lines about a summary of `divergence`; none of another's."""
    measures, items = summary.get("measures", {}), summary.get("items", 0)
    for name, found in measures.items():
        infinite = f" ({found['infinite']} of {found['count']} infinite)" if found["infinite"] else ""
        yield (
            f"{name}: mean {_number(found['mean'])}{_error(found, items=items)}{infinite}, median {_cut(found, 50)}, "
            f"99% below {_cut(found, 99)}, {_largest(found)}"
        )
    if not measures:
        return
    yield f"same best token: {_share(summary['top1'], items)}"
    perplexity = summary["perplexity"]
    yield "perplexity: " + ", ".join(
        f"{label} {_number(perplexity[name])}{_error(perplexity, f'{name}_', items)}"
        for name, label in (("a", "A"), ("b", "B"), ("ratio", "B/A"), ("difference", "B - A"))
    )
    if (correlation := perplexity["correlation"]) is not None:
        yield f"correlation of log p_A and log p_B: {correlation:.4f}"
    delta, rms = summary["delta_p"], summary["rms_delta_p"]
    yield (
        f"p_B - p_A: mean {_number(delta['mean'])}{_error(delta, items=items)}, "
        f"RMS {_number(rms['value'])}{_error(rms, items=items)}"
    )
    for kind, measured in summary.get("noise_floor", {}).items():
        yield from _floor(kind.replace("_", " "), measured)
    yield f"{summary['positions']} tokens of {items} items; ± one standard error" + (
        ", by item" if items > 1 else ", over tokens"
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
            same_is_1 = name == "top1_agree" or name.startswith("topk_overlap")
            bound = f"at least {_number(found['min'])}" if same_is_1 else f"at most {_number(found['max'])}"
            yield f"noise floor, {kind}, {name}: mean {_number(found['mean'])}, {bound}"


def _largest(found: Found) -> str:
    at = found["max_at"]
    largest = _number(found["max"], found["negative_infinite"] == found["count"])
    return f"largest {largest} at {at['token']!r} ({at['item']}, token {at['position']})"


def _cut(found: Found, percent: int) -> str:
    negative = 100 * found["negative_infinite"] >= percent * found["count"] > 0
    return _number(found["percentiles"][str(percent)], negative)


def _share(found: Found, items: int) -> str:
    error, kind = _best_error(found, "", items)
    return f"{100 * found['value']:.2f}%" + (f" ± {100 * error:.2f}%{kind}" if error is not None else "")


def _error(found: Found, prefix: str = "", items: int = 1) -> str:
    error, kind = _best_error(found, prefix, items)
    return "" if error is None else f" ± {error:.2g}{kind}"


def _best_error(found: Found, prefix: str, items: int) -> tuple[float | None, str]:
    """The error by item, and else that over tokens, which is said where others are by item."""
    clustered: float | None = found[f"{prefix}clustered_stderr"]
    plain: float | None = found[f"{prefix}stderr"]
    if clustered is not None:
        return clustered, ""
    return plain, " (over tokens)" if items > 1 else ""


def _number(value: float | None, negative: bool = False) -> str:
    return ("-infinite" if negative else "infinite") if value is None else f"{value:.4g}"
