"""`python -m workers.launch.ray`: a worker somewhere in a Ray cluster, to its parent like one on this machine.

It reads a `PlacedSpec` from standard input, places an actor that starts the worker, tells the worker's address on
standard output, and ends when the worker ends, with its code. When this process dies, Ray kills the actor, and the
worker dies with it. So the service itself holds no Ray: what becomes of a cluster ends this process alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rl_onoff.errors import ConfigurationError, LoadError, MissingDependency
from workers.launch.ray_actor import RayWorker
from workers.parent import die_with_parent, read_line
from workers.wire import PlacedSpec, Placement

logger = logging.getLogger("rl_onoff.ray")

EXIT_LOAD_FAILED = 3
EXIT_LOST = 4
_REMIND_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_AGAIN_SECONDS = 2.0

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


class _Stopped(Exception):
    """SIGTERM came."""


def connect(address: str, patience: float) -> Any:
    """The module `ray`, connected. Raises LoadError where there is none, or no cluster for `patience` seconds."""
    # Every line of a worker's log belongs in the service's: repeated ones too.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependency.of("ray", "ray", "launch: ray") from error
    if os.environ.get("RAY_AUTH_MODE") != "token" and not (Path.home() / ".ray/auth_token").exists():
        logger.warning(
            "RAY_AUTH_MODE is not `token`: a Ray cluster without tokens runs the code of anyone who reaches it"
        )
    deadline = time.monotonic() + patience
    while True:
        try:
            if address != "auto":  # Ray itself tries for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            ray.init(address=address, namespace="rl-onoff", log_to_driver=True, configure_logging=False)
            return ray
        except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()
            problem = f"no Ray cluster at {address}: {reason[0] if reason else type(error).__name__}"
            if time.monotonic() >= deadline:
                raise LoadError(problem) from error
        logger.warning("%s; trying again", problem)
        time.sleep(_AGAIN_SECONDS)


def actor_options(placement: Placement) -> dict[str, Any]:
    """For `ray.remote`: replicas on different nodes where there is room; restarting is the service's business."""
    options: dict[str, Any] = {
        "num_gpus": placement.num_gpus,
        "num_cpus": placement.num_cpus,
        "resources": placement.resources,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if placement.labels:
        options["label_selector"] = placement.labels
    return options


async def run(ray: Any, placed: PlacedSpec, tell: Tell) -> int:
    """The worker's life, up to its exit code; 0 after SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    name = f"the worker of pair {placed.worker.pair}"
    actor = ray.remote(RayWorker).options(**actor_options(placed.placement)).remote()
    try:
        node = await _until(stop, actor.node.remote(), f"{name} waits for a node with room: {_wants(placed.placement)}")
        logger.info("%s is on %s", name, node)
        spec = msgspec.json.encode(placed.worker).decode()
        said = json.loads(await _until(stop, actor.start.remote(spec, placed.python), f"{name} is being loaded"))
        if said:
            tell(said)
        code = int(await _until(stop, actor.wait.remote()))
    except _Stopped:
        await actor.stop.remote(placed.grace)
        return 0
    except ray.exceptions.RayError as error:
        logger.error("%s is lost: %s", name, " ".join(str(error).split()))
        return EXIT_LOST
    finally:
        ray.kill(actor)
    return code if code >= 0 else 128 - code


async def _until(stop: asyncio.Event, answer: Awaitable[T], reminder: str = "") -> T:
    """The answer; _Stopped if `stop` comes first. Says every so often what it waits for."""
    awaited, stopped = asyncio.ensure_future(answer), asyncio.create_task(stop.wait())
    try:
        while not (await asyncio.wait({awaited, stopped}, timeout=_REMIND_SECONDS, return_when="FIRST_COMPLETED"))[0]:
            if reminder:
                logger.info("%s", reminder)
        if stopped.done() and not awaited.done():
            raise _Stopped
        return await awaited
    finally:
        stopped.cancel()


def _wants(placement: Placement) -> str:
    return json.dumps({k: v for k, v in msgspec.structs.asdict(placement).items() if v and k != "address"})


def main() -> int:
    """The exit code."""
    # Ray prints on standard output, which here is for the parent.
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(message)s", stream=sys.stderr)

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=parent, flush=True)

    try:
        placed = msgspec.json.decode(read_line(0), type=PlacedSpec)
        die_with_parent()
        ray = connect(placed.placement.address, placed.patience)
    except (LoadError, msgspec.MsgspecError) as error:
        reported = error if isinstance(error, LoadError) else ConfigurationError(f"not a placed spec: {error}")
        tell(reported.problem())
        return EXIT_LOAD_FAILED
    try:
        return asyncio.run(run(ray, placed, tell))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
