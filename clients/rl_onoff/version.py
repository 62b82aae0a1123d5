"""The one place the version is read: the installed package's metadata."""

from importlib.metadata import version

__version__: str = version("rl-onoff")
