"""A service made of canned answers, for the client's tests: `httpx.MockTransport` for both clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

GENERATED: dict[str, Any] = {
    "id": "g1",
    "model": "base",
    "results": [
        {"prompt_index": 0, "index": 0, "text": "42", "token_ids": [4, 2], "finish_reason": "stop", "seed": 7},
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}

SWITCHED: dict[str, Any] = {
    "id": "s1",
    "a": "base",
    "b": "rl",
    "text": "xy\u2028z",
    "token_ids": [10, 11],
    "leads": "ab",
    "divergences": [0.01, None],
    "measure": "js",
    "switches": [{"position": 1, "from": "a", "to": "b", "value": None}],
    "b_fraction": 0.5,
    "finish_reason": "stop",
    "seed": 3,
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "a_forwards": 2, "b_forwards": 2},
    "receipt": {
        "version": "0",
        "a_fingerprint": "fa",
        "b_fingerprint": "fb",
        "prompt_ids": [1, 2, 3],
        "policy": {"kind": "divergence"},
        "sampling": {"seed": 3},
    },
}

TOKENS: list[dict[str, Any]] = [
    {"index": 0, "id": 10, "text": "x", "lead": "a", "divergence": 0.01},
    {"index": 1, "id": 11, "text": "y\u2028z", "lead": "b", "divergence": None},
]


def sse(event: str, data: Any, index: int | None = None) -> bytes:
    """One server-sent event, its JSON unescaped as pydantic writes it."""
    head = f"id: {index}\n" if index is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def switch_events() -> list[bytes]:
    """A whole stream of `/switch-generate`, with a ping and an event of the future in it."""
    return [
        b": ping\n\n",
        sse("token", TOKENS[0], 0),
        b": ping\n\n",
        sse("invented-later", {"x": 1}),
        sse("switch", SWITCHED["switches"][0], 1),
        sse("token", TOKENS[1], 1),
        sse("done", SWITCHED),
    ]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response body in chunks, that may break off, and remembers that it was closed."""

    def __init__(self, chunks: list[bytes], failure: Exception | None = None) -> None:
        self.chunks, self.failure = chunks, failure
        self.closed = False
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.sent += 1
            yield chunk
        if self.failure is not None:
            raise self.failure

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True

    def response(self, media_type: str = "text/event-stream; charset=utf-8") -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": media_type, "X-Request-Id": "r9"}, stream=self)


class Service:
    """Gives its answers one after the other, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    @property
    def sent(self) -> dict[str, Any]:
        """The JSON body of the last request."""
        body: dict[str, Any] = json.loads(self.requests[-1].content)
        return body

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return answer(request)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx.Response(answer.status_code, headers=headers, content=answer.content)


def problem(status: int, slug: str, **members: Any) -> httpx.Response:
    """A problem as the service writes it."""
    headers = {"Content-Type": "application/problem+json", "X-Request-Id": "r1"}
    if "retry_after" in members:
        headers["Retry-After"] = str(members.pop("retry_after"))
    body = {"type": f"urn:rl-onoff:problem:{slug}", "title": slug, "status": status, "detail": f"it is {slug}"}
    return httpx.Response(status, headers=headers, json=body | members)
