"""Data sets in: files and Hugging Face data sets as rows of prompt, solution and reference.

    from rl_onoff.data import Reader, open_source

    for row in Reader(open_source("problems.jsonl"), needs=("prompt", "reference")):
        ...

A source is read lazily and as often as asked; whatever is wrong with a row comes as a `Broken` in its place, with the
line and the column.
"""

from rl_onoff.data.columns import GUESSES, Columns
from rl_onoff.data.rows import Prompting, Reader, Row
from rl_onoff.data.sources import Broken, Raw, Source, open_source

__all__ = ["GUESSES", "Broken", "Columns", "Prompting", "Raw", "Reader", "Row", "Source", "open_source"]
