"""Prometheus counters of the cache."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class CacheCounters:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rl_onoff_cache_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rl_onoff_cache_{name}", text, registry=registry)

        self.rows = counter("rows", "Rows and positions answered, from the cache or by the model", "pair", "source")
        self.blocks = counter("blocks", "Blocks looked up: hit, miss, or corrupt (and removed)", "result")
        self.errors = counter("errors", "Operations of the store that failed: read or write", "operation")
        self.bytes = counter("bytes", "Bytes as stored: read or written", "direction")
        self.dropped = counter("dropped", "Blocks not stored, by reason: size, queue, or store", "reason")
        self.available = gauge("available", "1 while the store answers")
        self.available.set(1)
        self.held = gauge("held_bytes", "Bytes held in this process: the embedded store, or what waits for Redis")
