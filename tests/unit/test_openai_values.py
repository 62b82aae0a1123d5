"""How long an OpenAI answer is taken to be: what decides whether it is written on the event loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.services.openai.running import Running


@pytest.mark.parametrize(("logprobs", "each"), [(None, 2), (5, 7)])
def test_every_choice_counts_with_its_prompt(logprobs: int | None, each: int) -> None:
    running: Any = Running.__new__(Running)
    running._logprobs = logprobs
    prompt = SimpleNamespace(ids=[1] * 1000)
    written = SimpleNamespace(token_ids=[2] * 10)
    running.choices = [SimpleNamespace(prompt=prompt, generation=written) for _ in range(3)]
    running.choices.append(SimpleNamespace(prompt=prompt, generation=None))
    assert running.values == (4 * 1000 + 3 * 10) * each
