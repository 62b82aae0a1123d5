"""OpenTelemetry: what a collector gets, and that being traced changes nothing for those who leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.running_service import events, running, table_pair

CANARY = "canary-7f3a91e2"
KEY = "key-canary-5be0c4778"


class Collector:
    """Takes traces over HTTP."""

    def __init__(self) -> None:
        received = self.received = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> dict[str, dict[str, str]]:
        """The attributes of each span, by its name."""
        found = {}
        for body in self.received:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found[span.name] = {each.key: str(each.value) for each in span.attributes}
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    serving = threading.Thread(target=collector.server.serve_forever)
    serving.start()
    yield collector
    collector.server.shutdown()
    serving.join()
    collector.server.server_close()


def test_requests_are_traced_without_what_they_say(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # what there is comes when the service ends
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    pair = table_pair(tmp_path, endless=True, delay=0.01, max_len=100_000)
    with running(tmp_path, {"pairs": [pair], "otel": True, "api_keys": [KEY]}) as service:
        body = {"prompt": CANARY, "sampling": {"max_tokens": 5000, "seed": 1}, "stream": True}
        with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {KEY}"}) as http:
            with http.stream("POST", "/switch-generate", json=body) as response:
                next(events(response))
            idle = 'rl_onoff_worker_outstanding{pair="pair",replica="0"} 0.0'
            service.wait_for(lambda: idle in http.get("/metrics").text, seconds=2)
            assert http.post("/switch-generate", json={"prompt": CANARY, "a": CANARY}).status_code == 404
            assert http.get(f"/examples?limit={CANARY}").status_code == 422
        service.terminate()
        assert service.exit_code() == 0
    spans = collector.spans()
    assert {"POST /switch-generate", "GET /examples"} <= spans.keys()
    assert "/switch-generate" in spans["POST /switch-generate"]["http.route"]
    assert not any("send" in name or "metrics" in name for name in spans)
    assert b"ours" in collector.received[0]
    assert b"canary" not in b"".join(collector.received)


def test_a_collector_that_is_gone_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with running(tmp_path, {"pairs": [table_pair(tmp_path)], "otel": True}) as service:
        body = {"prompt": "b", "sampling": {"max_tokens": 2}}
        assert httpx.post(f"{service.url}/switch-generate", json=body).status_code == 200
        service.terminate()
        assert service.exit_code(8) == 0
