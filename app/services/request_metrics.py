"""Prometheus metrics of requests: how many, how they ended, and how long clients waited.

Routes are labelled by their templates, never by what was asked for: the number of series is bounded.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class RequestMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "rl_onoff_http_requests",
            "Requests by route template, method and status; 499: the client left before its answer",
            ("route", "method", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "rl_onoff_http_request_seconds",
            "From the request's head to the end of its answer",
            ("route",),
            buckets=_LATENCIES,
            registry=registry,
        )
        self.first_token = Histogram(
            "rl_onoff_first_token_seconds",
            "From a stream's request to its first token, queueing included",
            ("route",),
            buckets=_LATENCIES,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "rl_onoff_inter_token_seconds",
            "Between two tokens of a stream; those of one round of lookahead come together",
            ("route",),
            buckets=_GAPS,
            registry=registry,
        )
        self.in_flight = Gauge("rl_onoff_http_in_flight", "Requests being answered", registry=registry)
