"""Pairs on SGLang: an unmodified server for each model, and a plugin inside it (docs/sglang.md)."""

from typing import Final

#: The release whose inner workings the plugin knows.
VERSION: Final = "0.5.23"
