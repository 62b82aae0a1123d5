"""`python -m workers.launch.remote`: a worker that an agent on another machine starts, to its parent like a local one.

It reads a `RemoteSpec` from standard input, asks the agent (`workers.agent`) for the worker, tells its address on
standard output, and ends when the worker ends, with its code. When this process dies its connection ends, and the agent
stops the worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from rl_onoff.errors import ConfigurationError, LoadError
from workers.agent import BEAT_SECONDS
from workers.parent import die_with_parent, read_line
from workers.wire import RemoteSpec

logger = logging.getLogger("rl_onoff.remote")

EXIT_LOAD_FAILED = 3
EXIT_LOST = 4
_AGAIN_SECONDS = 0.5
_REMIND_SECONDS = 30.0

Tell = Callable[[dict[str, Any]], None]


async def run(spec: RemoteSpec, tell: Tell) -> int:
    """The worker's life, up to its exit code; 0 after SIGTERM. An agent that is not there yet is waited for."""
    living = asyncio.create_task(_live(spec, tell))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, living.cancel)
    try:
        return await living
    except asyncio.CancelledError:
        return 0


async def _live(spec: RemoteSpec, tell: Tell) -> int:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=4 * BEAT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {spec.token}"}) as session:
        try:
            response = await _asked(session, spec)
            async with response:
                return await _followed(response, spec, tell)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            logger.error("the agent at %s is lost: %s", spec.agent, error or type(error).__name__)
            return EXIT_LOST


async def _asked(session: aiohttp.ClientSession, spec: RemoteSpec) -> aiohttp.ClientResponse:
    """The agent's answer. Raises LoadError where it refuses."""
    body = msgspec.json.encode(msgspec.structs.replace(spec, token=""))
    reminded = -_REMIND_SECONDS
    while True:
        try:
            response = await session.post(f"http://{spec.agent}/worker", data=body)
        except (aiohttp.ClientConnectionError, OSError) as error:
            now = asyncio.get_running_loop().time()
            if now - reminded >= _REMIND_SECONDS:
                reminded = now
                logger.info("waiting for the agent at %s: %s", spec.agent, error)
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        if response.status == 401:
            raise LoadError(f"the agent at {spec.agent} does not know the service's worker token")
        if response.status != 200:
            said = (await response.text())[:200]
            raise LoadError(f"the agent at {spec.agent} answered {response.status}: {said}")
        return response


async def _followed(response: aiohttp.ClientResponse, spec: RemoteSpec, tell: Tell) -> int:
    host = spec.agent.rpartition(":")[0]
    async for line in response.content:
        said = json.loads(line)
        if "address" in said:
            tell({"address": f"{host}:{said['address'].rpartition(':')[2]}"})
        elif "waiting" in said:
            logger.info("the agent at %s waits %s", spec.agent, said["waiting"])
        elif "code" in said:
            return int(said["code"]) if said["code"] >= 0 else 128 - int(said["code"])
        elif said:
            tell(said)
    logger.error("the agent at %s has ended", spec.agent)
    return EXIT_LOST


def main() -> int:
    """The exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(message)s", stream=sys.stderr)

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), flush=True)

    try:
        spec = msgspec.json.decode(read_line(0), type=RemoteSpec)
        die_with_parent()
        return asyncio.run(run(spec, tell))
    except (LoadError, msgspec.MsgspecError) as error:
        reported = error if isinstance(error, LoadError) else ConfigurationError(f"not a remote spec: {error}")
        tell(reported.problem())
        return EXIT_LOAD_FAILED


if __name__ == "__main__":
    sys.exit(main())
