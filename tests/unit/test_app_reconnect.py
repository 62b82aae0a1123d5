"""What is kept of streams whose listener is gone: so many, and so many tokens."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.services import reconnect
from app.services.events import BEGINNING
from app.services.reconnect import Stream, Streams


def stream(tokens: int) -> Stream:
    run: Any = SimpleNamespace(ids=[0] * (tokens // 2), generation=SimpleNamespace(tokens=[0] * (tokens - tokens // 2)))
    return Stream(run, BEGINNING)


async def test_the_oldest_make_room_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "_MOST_TOKENS", 100)
    streams = Streams(60)
    for name, tokens in ((b"a", 40), (b"b", 50), (b"c", 30)):
        streams._keep(name, stream(tokens))
    assert list(streams._waiting) == [b"b", b"c"]
    streams._keep(b"b", stream(70))  # again, and longer
    assert list(streams._waiting) == [b"c", b"b"]
    streams._keep(b"d", stream(1000))  # which is not sent away for being long
    assert list(streams._waiting) == [b"d"]
    streams._keep(b"e", stream(1))
    assert list(streams._waiting) == [b"e"]


async def test_what_has_gone_on_or_waited_long_enough_weighs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "_MOST_TOKENS", 100)
    streams = Streams(0.02)
    streams._keep(b"a", stream(90))
    assert streams._taken(b"a") is not None
    streams._keep(b"b", stream(90))
    await asyncio.sleep(0.1)
    assert (streams._waiting, streams._tokens) == ({}, 0)


async def test_the_oldest_make_room_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "_MOST", 2)
    streams = Streams(60)
    for name in (b"a", b"b", b"c"):
        streams._keep(name, stream(1))
    assert list(streams._waiting) == [b"b", b"c"]
