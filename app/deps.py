"""What routes are given."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.config import Settings
from app.services.cache.frames import Cache
from app.services.drain import Drain
from app.services.reconnect import Streams
from app.services.registry import Registry
from app.services.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Service:
    """The running service: one of each."""

    settings: Settings
    supervisor: Supervisor
    registry: Registry
    drain: Drain
    cache: Cache
    streams: Streams
    started: int = field(default_factory=lambda: int(time.time()))


async def _service(request: Request) -> Service:  # FastAPI would give a plain function to a thread
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
