"""`python -m workers`: read a `WorkerSpec` from standard input, load the pair, serve it.

Standard input stays open as long as the parent lives: its end is the parent's death, and this process's. A pair
that cannot be loaded is reported as one line of JSON (a problem) on standard output and exit code 3; one whose engine
has ended, by exit code 4. One that listens on TCP tells its address there, as `{"address": "host:port"}`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import sys
from pathlib import Path

import msgspec

from rl_onoff.errors import ConfigurationError, LoadError, WorkerLost
from workers.backends import load_pair
from workers.host import serve
from workers.memory import keep_freed_memory
from workers.parent import die_with_parent, read_line
from workers.wire import DUMP_SIGNAL, WorkerSpec

EXIT_LOAD_FAILED = 3
EXIT_LOST = 4


def _announce(address: str) -> None:
    print(json.dumps({"address": address}), flush=True)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(message)s", stream=sys.stderr)
    faulthandler.register(DUMP_SIGNAL)  # from C: also where no Python code gets to run
    try:
        spec = msgspec.json.decode(read_line(0), type=WorkerSpec)
        if spec.backend == "hf":  # vLLM and SGLang have their own ways with memory
            keep_freed_memory()
        die_with_parent()
        pair = load_pair(spec)
    except (LoadError, msgspec.MsgspecError) as error:
        reported = error if isinstance(error, LoadError) else ConfigurationError(f"not a worker spec: {error}")
        print(json.dumps(reported.problem()), flush=True)
        return EXIT_LOAD_FAILED
    try:
        asyncio.run(
            serve(
                pair,
                spec.socket,
                host=spec.host,
                port=spec.port,
                token=spec.token,
                lease=spec.lease,
                announce=_announce,
            )
        )
    except WorkerLost as error:
        logging.getLogger("rl_onoff.worker").error("%s: this worker ends", error.detail)
        return EXIT_LOST
    finally:
        if spec.socket:
            Path(spec.socket).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
