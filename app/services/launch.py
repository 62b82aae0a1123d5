"""How a life of a worker begins: what is run, and what it is told."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.pair_config import ModelConfig, PairConfig
from workers.wire import ModelSpec, PlacedSpec, Placement, RemoteSpec, WorkerSpec

_REMOTE_COMMAND = (sys.executable, "-m", "workers.launch.remote")
_RAY_COMMAND = (sys.executable, "-m", "workers.launch.ray")
#: A worker elsewhere ends when it is not asked for its health, as it is twice a second, for so long.
_LEASE_SECONDS = 30.0
#: Of the time a worker gets to end: the rest is for whoever is between to say so.
_SHARE_OF_GRACE = 0.7


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with its standard input. `socket` is where the worker will listen; "": it will tell its address.

    `alone`: nothing else is to compute on this machine's processors.
    """

    command: Sequence[str]
    spec: WorkerSpec | PlacedSpec | RemoteSpec
    environment: Mapping[str, str] = field(default_factory=dict)
    socket: str = ""
    alone: bool = False
    token: str = field(default="", repr=False)


def launch(
    pair: PairConfig,
    replica: int,
    socket: Path,
    command: Sequence[str],
    *,
    grace: float,
    patience: float,
    agents_token: str = "",
    alone: bool = False,
) -> Launch:
    """For the `replica`-th worker of a pair.

    `grace` and `patience` as in `PlacedSpec`, of a worker elsewhere; `socket` and `alone` are of any other.
    """
    token = secrets.token_urlsafe(32)
    if pair.agents:
        remote = RemoteSpec(_spec(pair, "", token), pair.agents[replica], agents_token, grace * _SHARE_OF_GRACE)
        return Launch(_REMOTE_COMMAND, remote, token=token)
    if pair.ray is not None:
        placement = Placement(**pair.ray.model_dump())
        spec = PlacedSpec(_spec(pair, "", token), placement, pair.python, grace * _SHARE_OF_GRACE, patience)
        return Launch(_RAY_COMMAND, spec, token=token)
    environment = {"CUDA_VISIBLE_DEVICES": pair.gpus[replica]} if pair.gpus else {}
    begin = [pair.python or command[0], *command[1:]]
    return Launch(begin, _spec(pair, str(socket)), environment, socket=str(socket), alone=alone)


def has_the_machine(pairs: Sequence[PairConfig]) -> bool:
    """Whether one worker is all that a service of these pairs starts on its machine to compute.

    Of Hugging Face's backend: other engines have threads in ways of their own.
    """
    here = [pair for pair in pairs if not pair.agents and pair.ray is None]
    return sum(pair.replicas for pair in here) == 1 and here[0].backend == "hf"


def _spec(pair: PairConfig, socket: str, token: str = "") -> WorkerSpec:
    def model(name: str, config: ModelConfig) -> ModelSpec:
        return ModelSpec(name, config.path, config.adapter, config.revision, config.dtype, config.device)

    return WorkerSpec(
        pair=pair.name,
        backend=pair.backend,
        socket=socket,
        a=model(pair.model_a, pair.a),
        b=model(pair.model_b, pair.b),
        sequences=pair.sequences,
        max_len=pair.max_len,
        trust_remote_code=pair.trust_remote_code,
        options=pair.options,
        token=token,
        lease=_LEASE_SECONDS if token else 0.0,
    )
