"""What a request may take from vLLM's prefix cache."""

from __future__ import annotations

from typing import Any

from workers.backends.vllm.extension import KEY


def cap_prefix_hits(engine: Any) -> None:
    """Let a request read from the prefix cache only what lies before its first wanted row.

    vLLM takes the longest cached prefix there is, and has no rows for what it takes.
    """
    manager = engine.engine_core.engine_core.scheduler.kv_cache_manager
    lookup, find = manager.get_computed_blocks, manager.coordinator.find_longest_cache_hit
    most: list[int] = []

    def get_computed_blocks(request: Any) -> Any:
        asked = (request.sampling_params.extra_args or {}).get(KEY, {})
        start = asked.get("start")
        most.append(request.num_tokens if start is None else start - 1)
        try:
            return lookup(request)
        finally:
            most.pop()

    def find_longest_cache_hit(hashes: Any, longest: int) -> Any:
        return find(hashes, min(longest, most[-1]) if most else longest)

    manager.get_computed_blocks = get_computed_blocks
    manager.coordinator.find_longest_cache_hit = find_longest_cache_hit
