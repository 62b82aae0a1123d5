"""What starts a worker."""

from __future__ import annotations

import signal
from typing import Any, Final

import msgspec

#: At which a worker writes the stack of each of its threads to standard error.
DUMP_SIGNAL: Final = signal.SIGUSR2


class ModelSpec(msgspec.Struct, frozen=True):
    """Which model to load. `adapter` is a LoRA adapter over A's weights (side b only), instead of `path`."""

    name: str
    path: str | None = None
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"


class WorkerSpec(msgspec.Struct, frozen=True):
    """All a worker process is told, as one JSON document on its standard input.

    `sequences` is the number of sequences in flight at once, `max_len` caps the context (default: the models' own),
    `options` are the backend's own. With a `host` it listens on TCP, on `port` or a free one, instead of the unix
    `socket`, answers those alone who know `token`, tells its address (`{"address": "host:port"}`) as a line of standard
    output, and ends when nobody asked for its health for `lease` seconds.
    """

    pair: str
    backend: str
    socket: str
    a: ModelSpec
    b: ModelSpec
    sequences: int = 16
    max_len: int | None = None
    trust_remote_code: bool = False
    options: dict[str, Any] = {}
    host: str = ""
    port: int = 0
    token: str = ""
    lease: float = 0.0


class RemoteSpec(msgspec.Struct, frozen=True):
    """All that `python -m workers.launch.remote` is told, and without the agent's `token` the agent."""

    worker: WorkerSpec
    agent: str  # host:port
    token: str = ""
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL


class Placement(msgspec.Struct, frozen=True):
    """What a worker takes of a node of a Ray cluster, and which nodes may be it: in the words of `ray.remote`."""

    address: str
    num_gpus: float
    num_cpus: float
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}


class PlacedSpec(msgspec.Struct, frozen=True):
    """All that `python -m workers.launch.ray` is told. `python` is the worker's interpreter, on its node.

    A cluster that cannot be reached is tried for `patience` seconds; `grace` seconds lie between SIGTERM and SIGKILL.
    """

    worker: WorkerSpec
    placement: Placement
    python: str | None = None
    grace: float = 5.0
    patience: float = 0.0
