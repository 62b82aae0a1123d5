"""A run's memory does not grow with its data set, nor with its results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_onoff.data.spill import Keys

#: Reads rows, writes a result for each, resumes, summarises; says what its peak of resident memory was, in MB.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from rl_onoff.data import Reader, open_source
from rl_onoff.metrics import bootstrap
from rl_onoff.runs import RunFolder, read_results, summarise

sys.modules[bootstrap.__module__]._AT_ONCE = 1 << 16  # of a fixed size, but so large that it would hide the rest
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
with (folder / f"{rows}.jsonl").open("w") as file:
    for i in range(rows):
        file.write(json.dumps({"id": f"problem-{i:08d}", "prompt": "p", "reference": "1"}) + "\\n")
for limit in (rows // 2, rows):
    with RunFolder.open(folder / f"run-{rows}", {"command": "test"}, resume=True) as run:
        for row in Reader(open_source(folder / f"{rows}.jsonl"), limit=limit):
            if ("", row.id, "0") not in run.done:
                run.append([{"id": row.id, "sample": 0, "text": "A: 1", "reference": row.reference,
                             "token_ids": [1, 2, 3], "metrics": {"exact_match": 1.0}}])
assert summarise(read_results(folder / f"run-{rows}"), ["exact_match"])["results"] == rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(rows)], stdout=subprocess.PIPE, text=True)
        for rows in (5000, 20000)
    ]
    few, many = (float(child.communicate(timeout=300)[0]) for child in children)
    assert many - few < 6, f"{few} MB, {many} MB"


_KEY = st.tuples(st.text(max_size=3), st.text(st.characters(), max_size=3), st.text(max_size=2))


@settings(max_examples=40)
@given(st.lists(_KEY), st.lists(_KEY))
def test_keys_are_a_set(added: list[tuple[str, ...]], dropped: list[tuple[str, ...]]) -> None:
    keys, expected = Keys(), set(added) - set(dropped)
    keys.update(added)
    for key in dropped:
        keys.discard(key)
    assert (len(keys), set(keys)) == (len(expected), expected)
    assert keys == expected
    assert all((key in keys) == (key in expected) for key in [*added, *dropped])
    keys.close()
    keys.close()
    assert (len(keys), list(keys), ("", "", "") in keys) == (0, [], False)
    with pytest.raises(ValueError, match="closed"):
        keys.add(("", "", ""))
