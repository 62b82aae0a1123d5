"""The backends, imported only when one is asked for."""

from __future__ import annotations

from rl_onoff.errors import ConfigurationError
from workers.backends.base import Pair
from workers.wire import WorkerSpec

BACKENDS = ("hf", "sglang", "table")


def load_pair(spec: WorkerSpec) -> Pair:
    """Load both models of a pair, which may take minutes. Raises a `LoadError` that says what to do."""
    match spec.backend:
        case "hf":
            from workers.backends.hf.pair import load

            return load(spec)
        case "sglang":
            from workers.backends.sglang.pair import load as load_sglang

            return load_sglang(spec)
        case "table":
            from workers.backends.table import load as load_table

            return load_table(spec)
        case _:
            raise ConfigurationError(f"no backend {spec.backend!r}; there are: {', '.join(BACKENDS)}")
