"""Client SDK of rl-onoff: compare two language models token by token, and generate while switching between them.

from rl_onoff import Client

with Client() as client:
    print(client.switch_generate("Q: 49-8-6+7=").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl_onoff.version import __version__

if TYPE_CHECKING:
    from rl_onoff.client import AsyncClient, Client
    from rl_onoff.errors import OnOffError
    from rl_onoff.tensors import FullDistributions

__all__ = ["AsyncClient", "Client", "FullDistributions", "OnOffError", "__version__"]

_HOMES = {
    "AsyncClient": "rl_onoff.client",
    "Client": "rl_onoff.client",
    "FullDistributions": "rl_onoff.tensors",
    "OnOffError": "rl_onoff.errors",
}


# Workers import the maths and the contract from this package and have no use for an HTTP client: it is loaded when
# first asked for.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
