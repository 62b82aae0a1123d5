"""Data sets in: every format, columns guessed or named, prompts made, and what is wrong with a row said."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rl_onoff.data import Broken, Columns, Prompting, Reader, Row, open_source
from rl_onoff.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": "p1", "question": "1+1?", "answer": "2"},
    {"id": "p2", "question": 'a "b",\nc', "answer": "é"},
]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def written(folder: Path, kind: str) -> str:
    match kind:
        case "jsonl":
            return str(lines(folder / "d.jsonl", *ROWS))
        case "json":
            (folder / "d.json").write_text(json.dumps({"rows": ROWS, "version": 1}))
            return str(folder / "d.json")
        case "csv":
            (folder / "d.csv").write_text('id,question,answer\np1,1+1?,2\np2,"a ""b"",\nc",é\n', encoding="utf-8-sig")
            return str(folder / "d.csv")
        case "parquet":
            arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(ROWS), folder / "d.parquet")
            return str(folder / "d.parquet")
    (folder / "set").mkdir()
    lines(folder / "set" / "train.jsonl", *ROWS)
    return f"hf:{folder / 'set'}:train"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "hf"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    reader = Reader(open_source(written(tmp_path, kind)), ("prompt", "reference"))
    rows = list(reader)
    assert [row for row in rows if isinstance(row, Broken)] == []
    assert [(row.id, row.prompt, row.reference) for row in rows if isinstance(row, Row)] == [
        ("p1", "1+1?", "2"),
        ("p2", 'a "b",\nc', "é"),
    ]
    assert list(reader) == rows  # it can be read again
    assert reader.count() in (2, None)


def test_what_is_wrong_is_said_with_its_line_and_column(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": "p", "solution": "s"},
        '{"id": 2, "prompt": "p"',
        {"id": 3, "prompt": "p"},
        {"id": 4, "prompt": "p", "solution": ""},
        {"id": 1, "prompt": "p", "solution": "s"},
        '{"id": 6, "prompt": "\\ud800", "solution": "s"}',
        {"id": 7, "prompt": 5, "solution": "s"},
        "[1]",
        {"id": None, "prompt": "p", "solution": "s"},
        "",
        {"id": 11, "prompt": "p", "solution": "s"},
    ]
    found = list(Reader(open_source(lines(tmp_path / "d.jsonl", *rows)), ("prompt", "solution")))
    assert [row.id for row in found if isinstance(row, Row)] == ["1", "11"]
    said = [str(row) for row in found if isinstance(row, Broken)]
    for line, words in [
        (2, "no JSON"),
        (3, "column 'solution' for the solution is missing"),
        (4, "column 'solution': the solution is empty"),
        (5, "the id '1' occurs a second time"),
        (6, "no valid Unicode"),
        (7, "column 'prompt': a prompt must be text, not int"),
        (8, "no object"),
        (9, "an id must be text or an integer"),
    ]:
        assert said[line - 2].startswith(f"d.jsonl:{line}: ")
        assert words in said[line - 2]


def test_csv_lines_of_another_length(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,answer\n1,2\n3\n4,5\n")
    found = list(Reader(open_source(tmp_path / "d.csv")))
    assert str(found[1]) == "d.csv:3: 1 cells, the header has 2"
    assert [row.id for row in found if isinstance(row, Row)] == ["0", "2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(prompt="questoin"), "Did you mean 'question'?"),
        (Columns(), "no column looks like a solution"),
    ],
)
def test_columns_that_do_not_exist(tmp_path: Path, columns: Columns, message: str) -> None:
    reader = Reader(open_source(lines(tmp_path / "d.jsonl", *ROWS)), ("prompt", "solution"), columns)
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        reader.settled()


@pytest.mark.parametrize("spec", ["nothing.jsonl", "{here}", "{here}/x.txt", "hf:only", "hf::x"])
def test_sources_that_do_not_exist(tmp_path: Path, spec: str) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(DataError):
        open_source(spec.format(here=tmp_path))


def test_prompts_are_made(tmp_path: Path) -> None:
    source = open_source(lines(tmp_path / "d.jsonl", {"problem": "2*3", "hint": "h", "answer": "x #### 6"}))
    prompting = Prompting("Q: {{ problem }} ({{ hint }})", chat=True, system="S", reference_after="####")
    (row,) = Reader(source, ("prompt", "reference"), prompting=prompting)
    assert isinstance(row, Row)
    assert row.start == {
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q: 2*3 (h)"}],
    }
    assert row.reference == "6"
    (row,) = Reader(source, prompting=Prompting("{{ nothing }}"))
    assert "'nothing' is undefined" in str(row)
    with pytest.raises(DataError, match="line 1"):
        Reader(source, prompting=Prompting("{{"))


def test_a_template_reaches_nothing_but_the_row(tmp_path: Path) -> None:
    source = open_source(lines(tmp_path / "d.jsonl", {"problem": "x"}))
    (row,) = Reader(source, prompting=Prompting("{{ problem.__class__.__mro__ }}"))
    assert isinstance(row, Broken)


def test_messages_in_both_usual_forms(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"from": "human", "value": "q"}]},
        {"messages": "q"},
    ]
    first, second, third = Reader(open_source(lines(tmp_path / "d.jsonl", *rows)))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.start == second.start == {"messages": [{"role": "user", "content": "q"}]}
    assert isinstance(third, Broken)


def test_a_run_is_data_again_and_its_ids_are_the_truth(tmp_path: Path) -> None:
    lines(
        tmp_path / "results.jsonl",
        {"id": "p", "sample": 0, "prompt": "q", "text": "t", "token_ids": [1, 2]},
        {"id": "p", "sample": 1, "prompt": "q", "prompt_ids": [7], "text": "t", "token_ids": [3]},
        {"id": "r", "sample": 0, "error": {"type": "x", "detail": "y"}},
    )
    first, second = Reader(open_source(tmp_path), ("prompt", "solution"))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.id, second.id) == ("p#0", "p#1")
    assert first.item == {"prompt": "q", "solution_ids": [1, 2]}
    assert second.item == {"prompt_ids": [7], "solution_ids": [3]}


def test_a_rows_seed_is_its_own(tmp_path: Path) -> None:
    first, second = Row("a", ""), Row("b", "")
    assert first.seed(1) == Row("a", "elsewhere").seed(1)
    assert len({first.seed(1), second.seed(1), first.seed(2)}) == 3


def test_memory_stays_flat_over_many_rows(tmp_path: Path) -> None:
    """100,000 rows of 1.2 kB are 120 MB; what is kept of them is a digest of each id."""
    filler = "x" * 1200
    with (tmp_path / "d.jsonl").open("w") as file:
        for index in range(100_000):
            file.write(f'{{"id": "row-{index}", "prompt": "{filler}"}}\n')
    tracemalloc.start()
    try:
        count = sum(isinstance(row, Row) for row in Reader(open_source(tmp_path / "d.jsonl")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 100_000
    assert peak < 20e6
