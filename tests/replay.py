"""`python -m tests.replay FILE ROOT`: an image's pip steps, run without Docker under the folder ROOT.

Stages share ROOT. Not replayed: the base image, users, and the index of CUDA or CPU builds (`--index-url`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_INSIDE = re.compile(r"(?<![\w/.])/(opt|build|wheels)\b")


def replay(dockerfile: Path, root: Path) -> list[str]:
    """Copy and run what the file says; the commands that were run."""
    arguments: dict[str, str] = {}
    workdir = root
    ran = []
    for line in dockerfile.read_text().replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        if name == "ARG":
            key, _, arguments[key] = rest.partition("=")
        elif name == "WORKDIR":
            workdir = Path(_under(rest, root))
            workdir.mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                _copy(_CHECKOUT / source, workdir / _under(target, root), folder=target.endswith("/"))
        elif name == "RUN" and "pip" in rest:
            command = re.sub(r'--index-url "\S+"', "", _under(rest, root))
            for key, value in arguments.items():
                command = command.replace(f"${{{key}}}", value)
            command = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", command)
            subprocess.run(["sh", "-ec", command], check=True, cwd=workdir)
            ran.append(command)
    return ran


def _under(text: str, root: Path) -> str:
    return _INSIDE.sub(lambda match: f"{root}{match[0]}", text)


def _copy(source: Path, target: Path, *, folder: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target = target / source.name if folder else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


if __name__ == "__main__":
    for step in replay(Path(sys.argv[1]), Path(sys.argv[2]).resolve()):
        print(step)
