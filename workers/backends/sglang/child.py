"""`python -m workers.backends.sglang.child`: an SGLang server that lives no longer than its worker.

Its arguments, the key among them, come as one line of JSON on standard input, where no other user can read them;
standard input then stays open, and its end is the end of this process group. Of the folder given nothing is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path


def _die_with_parent(folder: Path) -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    """Raises SystemExit as SGLang does."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    document = json.loads(line)
    _die_with_parent(Path(document["folder"]))
    sys.argv[1:] = document["arguments"]

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(sys.argv[1:]))


if __name__ == "__main__":
    main()
