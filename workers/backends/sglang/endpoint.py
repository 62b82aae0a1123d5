"""Where a model's SGLang server answers; of one that somebody else runs, that is all there is to know."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any, Final

from rl_onoff.errors import ConfigurationError, LoadError

POLL_SECONDS: Final = 0.1
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Endpoint:
    """A server at `url` that asks for `key`."""

    def __init__(self, name: str, url: str, key: str) -> None:
        self.name, self.url, self.key = name, url.rstrip("/"), key

    @property
    def end(self) -> str:
        """What became of it."""
        return "does not answer"

    def wait_ready(self, deadline: float) -> None:
        """Return once it answers. Raises LoadError when that is not by `deadline` (`time.monotonic`)."""
        while not self.answers():
            if time.monotonic() > deadline:
                raise LoadError(f"the SGLang server of model {self.name} at {self.url} does not answer")
            time.sleep(POLL_SECONDS)

    def answers(self) -> bool:
        try:
            with _direct.open(self.url + "/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:  # nobody listens, or not yet to this
            return False

    def information(self) -> dict[str, Any]:
        """What it says of itself. Raises ConfigurationError where it turns us away."""
        request = urllib.request.Request(self.url + "/server_info", headers=self.headers)  # noqa: S310 - the operator's
        try:
            with _direct.open(request, timeout=60) as response:
                document: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise ConfigurationError(f"the server of model {self.name} at {self.url} answers {error.code}") from error
        return document

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def until_ended(self) -> None:
        """Never returns: of a server elsewhere nobody knows whether it comes back."""
        await asyncio.Event().wait()

    async def ends_within(self, seconds: float) -> bool:
        """Whether it has ended, or does so in that time."""
        return False

    def stop(self) -> None:
        """Not ours to stop."""
