"""The backends, imported only when one is asked for."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from rl_onoff.errors import ConfigurationError, MissingDependency
from workers.backends.base import Pair
from workers.backends.sglang import VERSION as SGLANG
from workers.wire import WorkerSpec

BACKENDS = ("hf", "vllm", "sglang", "table")


def load_pair(spec: WorkerSpec) -> Pair:
    """Load both models of a pair, which may take minutes. Raises a `LoadError` that says what to do."""
    match spec.backend:
        case "hf":
            from workers.backends.hf.pair import load

            return load(spec)
        case "sglang":
            if find_spec("sglang") is None:
                raise MissingDependency(
                    f"there is no SGLang in the environment of {sys.executable}: pip install sglang=={SGLANG} into one "
                    "of its own, and name its interpreter as the pair's `python` (docs/sglang.md)"
                )
            from workers.backends.sglang.pair import load as load_sglang

            return load_sglang(spec)
        case "vllm":
            from workers.backends.vllm.pair import load as load_vllm

            return load_vllm(spec)
        case "table":
            from workers.backends.table import load as load_table

            return load_table(spec)
        case _:
            raise ConfigurationError(f"no backend {spec.backend!r}; there are: {', '.join(BACKENDS)}")
