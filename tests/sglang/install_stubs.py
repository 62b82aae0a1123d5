"""Put the import-only stubs on the path of the environment this runs in, and of nothing else."""

import sysconfig
from pathlib import Path

stubs = Path(__file__).resolve().parent / "stubs"
Path(sysconfig.get_path("purelib"), "rl-onoff-stubs.pth").write_text(f"{stubs}\n")
