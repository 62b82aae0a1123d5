"""Problems, and what the service says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rl_onoff.policy import Lead
from rl_onoff.schemas.common import Response


class Problem(Response):
    """RFC 9457 problem details; also the SSE `error` event."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None
    retryable: bool = False


class ModelCard(Response):
    name: str
    pair: str
    side: Lead
    backend: str
    dtype: str | None = None
    vocab_size: int | None = None
    max_len: int | None = None
    fingerprint: str | None = None
    state: Literal["starting", "ready", "lost", "failed"]


class PairCard(Response):
    """`replicas` are the states of its workers; the pair's own is the best of them."""

    name: str
    a: str
    b: str
    replicas: list[Literal["starting", "ready", "lost", "failed"]] = []


class ModelsResponse(Response):
    models: list[ModelCard]
    pairs: list[PairCard]


class Example(Response):
    prompt: str
    reference: str | None = Field(default=None, description="the right answer, where there is one")


class ExamplesResponse(Response):
    pairs: dict[str, list[Example]] = Field(description="by the pair's name")


class HealthResponse(Response):
    status: Literal["ok"] = "ok"


class ReadyResponse(Response):
    ready: bool
    pairs: dict[str, str]


class VersionResponse(Response):
    version: str
    python: str
    extra: dict[str, Any] = {}
