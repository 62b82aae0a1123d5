"""Prometheus metrics of what the models did, fed by the frames that pass the link."""

from __future__ import annotations

from functools import partial
from itertools import groupby

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.record import current
from app.services.gate import Gate
from workers.wire import Frame, Rows, Tokens, Usage, Values, Walked

_LOOKAHEAD = {
    "drafted": "Tokens drafted by one model for the other to judge",
    "accepted": "Drafted tokens that were emitted",
    "rounds": "Rounds of lookahead: a draft and one forward pass that judges it",
}


_GATE = {
    "running": "Jobs that have their turn",
    "running_cost": "Tokens x vocabulary of the jobs that have their turn",
    "queued": "Requests of which something waits for its turn",
    "queued_cost": "Tokens x vocabulary of all that waits for its turn",
}
_WAITS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Telemetry:
    """One of each counter, labelled by pair. A registry of its own: several services may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rl_onoff_{name}", text, ("pair", *labels), registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rl_onoff_{name}", text, ("pair", "replica"), registry=self.registry)

        self.tokens = counter("tokens", "Tokens generated, by who led: a, b, or alone for /generate", "lead")
        self.forwards = counter("forwards", "Forward passes sequences took part in, by role", "role")
        self.switches = counter("switches", "Changes of the lead within a generation")
        self.restarts = counter("worker_restarts", "Workers that died and were started again", "replica")
        self.resumed = counter("resumed", "Requests that went on with another worker after the death of theirs")
        self.active = gauge("worker_active", "Requests the worker had in hand at its last heartbeat")
        self.outstanding = gauge("worker_outstanding", "Jobs the service has given the worker and not got back")
        self.refused = counter("admission_refused", "Requests refused because too much of their client waited")
        self.waited = Histogram(
            "rl_onoff_admission_wait_seconds",
            "From when a job could have run until it was given its turn",
            ("pair",),
            buckets=_WAITS,
            registry=self.registry,
        )
        self._gates = {
            name: Gauge(f"rl_onoff_admission_{name}", text, ("pair",), registry=self.registry)
            for name, text in _GATE.items()
        }
        self.lookahead = {name: counter(name, text) for name, text in _LOOKAHEAD.items()}

    def watch_gate(self, pair: str, gate: Gate) -> None:
        """Show how full it is."""
        for name, metric in self._gates.items():
            metric.labels(pair).set_function(partial(getattr, gate, name))

    def page(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class Meter:
    """Counts the frames of one job. Usage in frames is cumulative: what is counted is its growth."""

    def __init__(self, telemetry: Telemetry, pair: str) -> None:
        self._telemetry = telemetry
        self._pair = pair
        self._usage = Usage()
        self._lead = ""
        self._record = current()

    def count(self, frame: Frame) -> None:
        telemetry, pair = self._telemetry, self._pair
        self._record.rows += rows_of(frame)
        if isinstance(frame, Tokens):
            self._record.tokens += len(frame.ids)
            for lead, run in groupby(frame.leads or ["alone"] * len(frame.ids)):
                telemetry.tokens.labels(pair, lead).inc(sum(1 for _ in run))
                if self._lead not in ("", lead):
                    telemetry.switches.labels(pair).inc()
                self._lead = lead
        usage = getattr(frame, "usage", None)
        if isinstance(usage, Usage):
            for role, name in (("a", "a_forwards"), ("b", "b_forwards")):
                if growth := getattr(usage, name) - getattr(self._usage, name):
                    telemetry.forwards.labels(pair, role).inc(growth)
            for name, metric in telemetry.lookahead.items():
                if growth := getattr(usage, name) - getattr(self._usage, name):
                    metric.labels(pair).inc(growth)
            self._usage = usage


def rows_of(frame: Frame) -> int:
    """The positions a frame scores."""
    match frame:
        case Rows():
            return frame.token_logprobs.shape[0]
        case Values():
            return frame.logprobs_a.shape[0]
        case Walked():
            return len(frame.leads)
    return 0
