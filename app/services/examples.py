"""Problems a person may try a pair on, from the file its configuration names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from app.pair_config import PairConfig
from rl_onoff.errors import ConfigurationError
from rl_onoff.schemas import Example, ExamplesResponse

#: Of one pair in one answer.
MOST: Final = 1000


def read_examples(pairs: Iterable[PairConfig], limit: int) -> ExamplesResponse:
    """The first `limit` problems of each pair. Raises ConfigurationError for a file that holds something else."""
    return ExamplesResponse(
        pairs={pair.name: _read(pair.examples, limit) if pair.examples is not None else [] for pair in pairs}
    )


def _read(path: str, limit: int) -> list[Example]:
    found: list[Example] = []
    try:
        with Path(path).open("rb") as lines:
            for line in islice(lines, limit):
                row = json.loads(line.decode())
                found.append(Example(prompt=row["prompt"], reference=row.get("reference")))
    except OSError as error:
        raise ConfigurationError(f"the file of examples cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"line {len(found) + 1} of the file of examples holds no `prompt`") from error
    return found
