"""The actor that holds a worker on a node of a Ray cluster: the same process, started the same way as locally.

What is called here crosses Ray as text and numbers. The worker is a child of the actor: it may be killed while it
hangs, its interpreter may be another than Ray's, and the GPUs it sees are those Ray gave the actor.
"""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec

from workers.launch.local import LocalWorker
from workers.wire import WorkerSpec

_POLL_SECONDS = 0.05


class RayWorker:
    """One life of one worker. `start` it, `wait` for its end, `stop` it; it dies with the actor."""

    def __init__(self) -> None:
        self._worker: LocalWorker | None = None

    async def node(self) -> str:
        """The address of the machine it runs on."""
        from ray.util import get_node_ip_address

        return str(get_node_ip_address())

    async def start(self, spec: str, python: str | None) -> str:
        """Start a worker by `spec` (a WorkerSpec, in JSON); what it says once it is loaded or has failed, in JSON."""
        listening = msgspec.structs.replace(msgspec.json.decode(spec, type=WorkerSpec), host=await self.node())
        worker = self._worker = await LocalWorker.start(listening, [python or sys.executable, "-m", "workers"])
        ended = asyncio.create_task(worker.wait())
        while worker.address is None and not ended.done():
            await asyncio.wait({ended}, timeout=_POLL_SECONDS)
        return json.dumps({"address": worker.address} if not ended.done() else worker.problem or {})

    async def wait(self) -> int:
        """Its exit code; negative for a signal."""
        return await self._started.wait()

    async def stop(self, grace: float) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL."""
        if self._worker is not None:
            await self._worker.stop(grace)

    @property
    def _started(self) -> LocalWorker:
        if self._worker is None:
            raise RuntimeError("start comes first")
        return self._worker
