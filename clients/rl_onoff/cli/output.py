"""Output that cannot be written: a full disk is told in one line, a reader that left is no one to tell."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rl_onoff.cli.console import messages
from rl_onoff.errors import OutputError

#: `EX_IOERR` of sysexits.h.
UNWRITABLE: Final = 74
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Write all of stdout before the command ends, and end it as documented where that cannot be done."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            _discard_output()
            sys.exit(1)
        if error.errno not in _FULL:
            raise
        _discard_output()
        with contextlib.suppress(OSError):  # stderr may be on the same disk
            messages().print(f"rl-onoff: the output cannot be written: {error.strerror}", style="red", markup=False)
        sys.exit(UNWRITABLE)


@contextlib.contextmanager
def into(folder: Path) -> Iterator[None]:
    """Writes files to this folder. Raises OutputError where that cannot be done; a full disk is `written`'s to tell."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL or error.filename is None:
            raise
        raise OutputError(f"the output cannot be written: {folder}: {error.strerror}") from error


def _discard_output() -> None:
    """What is still buffered would fail once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
