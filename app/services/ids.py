"""Names of results."""

from __future__ import annotations

import secrets


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"
