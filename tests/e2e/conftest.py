from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.running_service import running, table_pair


@pytest.fixture(scope="session")
def table_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with one pair of tables: base (a) and tuned (b)."""
    folder = tmp_path_factory.mktemp("service")
    limits = {
        "body_bytes": 20000,
        "row_bytes": 2800,
        "items": 3,
        "prompts": 3,
        "samples": 8,
        "text_chars": 500,
        "reference_chars": 300,
        "body_seconds": 1,
    }
    document = {"pairs": [table_pair(folder, max_len=100)], "limits": limits}
    with running(folder, document) as service:
        yield service.url


@pytest.fixture(scope="session")
def http(table_service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=table_service, timeout=20) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
