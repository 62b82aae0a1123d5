"""Client SDK of rl-onoff: compare two language models token by token, and generate while switching between them."""

from rl_onoff.version import __version__

__all__ = ["__version__"]
