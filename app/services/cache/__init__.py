"""Rows and measures that were computed before, found again by the tokens they belong to (docs/cache.md).

`keys`, `codec` and `layouts` are pure; `memory` and `redis_store` hold entries; `frames` is what the services use.
"""
