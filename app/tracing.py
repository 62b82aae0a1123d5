"""OpenTelemetry traces, if configured: one span a request, sent by OTLP over HTTP as the `OTEL_*` environment says.

Spans name the route and how it ended. Bodies and headers are no part of them, nor is the query of an address.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from starlette.types import Scope

from rl_onoff.errors import MissingDependency
from rl_onoff.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

#: Asked every few seconds by machines.
_NOT_TRACED: Final = "/health$,/ready$,/metrics$"
#: Attributes of either generation of OpenTelemetry's conventions that hold the query.
_WITH_QUERY: Final = ("http.url", "http.target", "url.full", "url.query")
_FLUSH_SECONDS: Final = 1.0


class Tracing:
    """Traces the requests of `app`, from before its middleware to the last byte. Raises MissingDependency."""

    def __init__(self, app: FastAPI) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
            from opentelemetry.metrics import NoOpMeterProvider
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise MissingDependency.of(str(error.name), "otel", "RL_ONOFF_OTEL") from error
        ours = Resource({"service.name": "rl-onoff", "service.version": __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),  # /metrics has them
            excluded_urls=_NOT_TRACED,
            exclude_spans=["receive", "send"],  # or each token would be one
            server_request_hook=_without_query,
        )

    def close(self) -> None:
        """Send what is left, within a second: a collector that is gone holds nobody up."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def _without_query(span: Span, scope: Scope | dict[str, Any]) -> None:
    held: Any = getattr(span, "attributes", None) or {}
    for name in _WITH_QUERY:
        if name in held:
            span.set_attribute(name, "" if name == "url.query" else scope["path"])
