"""A service with API keys, over HTTP and through the SDK."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from rl_onoff import Client
from rl_onoff.errors import Unauthorized
from tests.e2e.running_service import running, table_pair

KEY = "a-key-for-this-test"


def test_only_a_key_opens_the_service(tmp_path: Path) -> None:
    document = {"pairs": [table_pair(tmp_path)], "api_keys": [KEY, "another-key-of-the-lab"]}
    with running(tmp_path, document) as service, httpx.Client(base_url=service.url) as http:
        for path in ("/models", "/metrics", "/docs", "/openapi.json", "/health/", "/nowhere"):
            refused = http.get(path)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["type"].endswith(":unauthorized")
            assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert http.post("/switch-generate", json={"prompt": "b"}).status_code == 401
        assert (http.get("/health").status_code, http.get("/ready").status_code) == (200, 200)
        with Client(service.url, api_key=KEY) as client:
            assert client.switch_generate("b", seed=1, max_tokens=3).token_ids
        with Client(service.url, api_key="a-key-that-is-wrong") as client, pytest.raises(Unauthorized):
            client.switch_generate("b", seed=1, max_tokens=3)
    log = service.log.read_text()
    assert KEY not in log
    assert "a-key-that-is-wrong" not in log
