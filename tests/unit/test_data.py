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


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_file_that_cannot_be_read_is_said_before_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = written(tmp_path, kind)

    def denied(path: Path, *args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)  # for root every file can be read
    with pytest.raises(DataError, match=f"cannot read .*{kind}: Permission denied"):
        open_source(name)


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


def test_a_prompt_column_that_was_named_wins_over_messages_that_were_not(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "m"}], "q": "p"}
    source = open_source(lines(tmp_path / "d.jsonl", row))
    (found,) = Reader(source, columns=Columns(prompt="q"))
    assert isinstance(found, Row)
    assert found.start == {"prompt": "p"}
    (found,) = Reader(source, columns=Columns(prompt="messages"))
    assert isinstance(found, Row)
    assert found.start == {"messages": row["messages"]}


def test_a_reference_nobody_needs_may_be_anything(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": ["41", "forty-one"]}, {"prompt": "p", "answer": {"value": 1}}]
    source = open_source(lines(tmp_path / "d.jsonl", *rows))
    assert [row.reference for row in Reader(source) if isinstance(row, Row)] == [None, None]
    assert all(isinstance(row, Broken) for row in Reader(source, ("prompt", "reference")))


def test_a_system_message_is_sent_or_refused(tmp_path: Path) -> None:
    mine = [{"role": "system", "content": "own"}, {"role": "user", "content": "m"}]
    source = open_source(lines(tmp_path / "m.jsonl", {"messages": mine[1:]}, {"messages": mine}))
    system = {"role": "system", "content": "S"}
    for chat in (True, False):
        rows = list(Reader(source, prompting=Prompting(chat=chat, system="S")))
        assert [row.messages for row in rows if isinstance(row, Row)] == [[system, mine[1]], mine]
    source = open_source(lines(tmp_path / "p.jsonl", {"prompt": "p"}))
    with pytest.raises(DataError, match=r"--system\) needs a chat"):
        Reader(source, prompting=Prompting(system="S")).settled()
    lines(tmp_path / "results.jsonl", {"id": "p", "prompt": "q", "prompt_ids": [7], "token_ids": [3]})
    with pytest.raises(DataError, match="has prompts as ids"):
        Reader(open_source(tmp_path), ("prompt", "solution"), prompting=Prompting(chat=True)).settled()


def test_columns_are_those_of_the_first_rows_whatever_the_limit(tmp_path: Path) -> None:
    source = open_source(lines(tmp_path / "d.jsonl", {"prompt": "p"}, {"id": "two", "prompt": "p", "answer": "1"}))
    reader = Reader(source, limit=1)
    assert (reader.settled().id, reader.settled().reference) == ("id", "answer")
    first, second = Reader(source)
    assert str(first) == "d.jsonl:1: column 'id': an id must be text or an integer"
    assert isinstance(second, Row)
    assert (second.id, second.reference) == ("two", "1")


def test_a_file_without_any_row_that_can_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "pretty.jsonl").write_text('{\n"prompt": "p"\n}\n')
    with pytest.raises(DataError, match=r"no row that can be read: pretty\.jsonl:1: no JSON"):
        Reader(open_source(tmp_path / "pretty.jsonl")).settled()
    with pytest.raises(DataError, match=r"d\.jsonl:1: no object"):
        Reader(open_source(lines(tmp_path / "d.jsonl", [{"prompt": "p"}]))).settled()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="has no rows"):
        Reader(open_source(tmp_path / "empty.jsonl")).settled()


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,prompt,answer,answer\n1,q,41,99\n")
    with pytest.raises(DataError, match="has the column 'answer' twice"):
        list(Reader(open_source(tmp_path / "d.csv")))


def test_data_in_a_folder_are_told_by_their_contents(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    source = open_source(written(tmp_path, "hf"))
    before = source.identity()
    assert before == source.identity()
    (tmp_path / "set" / ".cache").touch()
    assert before == source.identity()
    data = tmp_path / "set" / "train.jsonl"
    data.write_text(data.read_text().replace("1+1?", "1+2?"))
    changed = source.identity()
    assert before != changed
    data.rename(tmp_path / "set" / "train-0.jsonl")
    assert source.identity() not in (before, changed)


def test_splits_of_what_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"prompt": "p"}])
    made.save_to_disk(tmp_path / "unnamed")
    datasets.Dataset.from_list([{"prompt": "p"}], split="test").save_to_disk(tmp_path / "named")
    datasets.DatasetDict({"dev": made}).save_to_disk(tmp_path / "several")
    for name, split in (("unnamed", "train"), ("named", "test"), ("several", "dev")):
        assert len(list(Reader(open_source(f"hf:{tmp_path / name}:{split}")))) == 1
        with pytest.raises(DataError, match=f"there is no split 'other'; there are {split}"):
            list(Reader(open_source(f"hf:{tmp_path / name}:other")))


def test_data_that_break_off_are_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    table = arrow.Table.from_pylist([{"prompt": f"prompt {index}"} for index in range(1000)])
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])
    with pytest.raises(DataError, match=r"d\.parquet row 0: "):
        list(Reader(open_source(path)))
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set" / "train.jsonl", {"prompt": "p"}, '{"prompt": ')
    with pytest.raises(DataError, match=r":train row 0: "):
        list(Reader(open_source(f"hf:{tmp_path / 'set'}:train")))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "hf"])
def test_token_ids_are_read_from_every_format(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt_ids": [3], "solution_ids": [1, 0]}, {"prompt_ids": [2, 2], "solution_ids": [4]}]
    path = tmp_path / ("set" if kind == "hf" else f"d.{kind}")
    match kind:
        case "jsonl":
            lines(path, *rows)
        case "json":
            path.write_text(json.dumps(rows))
        case "csv":
            path.write_text('prompt_ids,solution_ids\n[3],"[1, 0]"\n"[2, 2]",[4]\n')
        case "parquet":
            arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(rows), path)
        case "hf":
            path.mkdir()
            lines(path / "train.jsonl", *rows)
    reader = Reader(open_source(f"hf:{path}:train" if kind == "hf" else path), ("prompt", "solution"))
    found = list(reader)
    assert [row.item for row in found if isinstance(row, Row)] == rows
    assert reader.identity()["columns"] == {
        "id": None,
        "prompt": None,
        "messages": None,
        "solution": None,
        "reference": None,
        "prompt_ids": "prompt_ids",
        "solution_ids": "solution_ids",
    }
    (generation,) = {tuple(row.start) for row in Reader(reader.source) if isinstance(row, Row)}
    assert generation == ("prompt_ids",)


def test_ids_and_text_in_one_set(tmp_path: Path) -> None:
    """Ids win in a row that has both, unless the text was asked for; a set without ids is identified as ever."""
    rows = [
        {"prompt": "p", "prompt_ids": [1], "solution": "s", "solution_ids": [2]},
        {"prompt": "p", "prompt_ids": None, "solution": "s"},
        {"solution_ids": [2]},
    ]
    source = open_source(lines(tmp_path / "d.jsonl", *rows))
    both, text, neither = Reader(source, ("prompt", "solution"))
    assert isinstance(both, Row)
    assert both.item == {"prompt_ids": [1], "solution_ids": [2]}
    assert isinstance(text, Row)
    assert text.item == {"prompt": "p", "solution": "s"}
    assert str(neither) == "d.jsonl:3: column 'prompt' for the prompt is missing"
    for options in (
        {"columns": Columns(prompt="prompt", solution="solution")},
        {"columns": Columns(solution="solution"), "prompting": Prompting(template="{{ prompt }}")},
    ):
        named = next(iter(Reader(source, ("prompt", "solution"), **options)))  # type: ignore[arg-type]
        assert isinstance(named, Row)
        assert named.item == {"prompt": "p", "solution": "s"}
    chat = next(iter(Reader(source, ("prompt", "solution"), prompting=Prompting(chat=True))))
    assert isinstance(chat, Row)
    assert chat.item == {"messages": [{"role": "user", "content": "p"}], "solution_ids": [2]}
    plain = Reader(open_source(lines(tmp_path / "e.jsonl", {"prompt": "p", "solution": "s"})), ("prompt", "solution"))
    assert plain.identity()["columns"].keys() == {"id", "prompt", "messages", "solution", "reference"}


def test_ids_alone_cannot_be_prompted(tmp_path: Path) -> None:
    source = open_source(lines(tmp_path / "d.jsonl", {"prompt_ids": [1], "solution_ids": [2]}))
    with pytest.raises(DataError, match="has prompts as ids: --template, --chat and --system cannot apply"):
        list(Reader(source, prompting=Prompting(chat=True)))
    cells = tmp_path / "d.csv"
    cells.write_text("prompt,prompt_ids,solution_ids\np,,[2]\np,3 1,[2]\n")
    text, broken = Reader(open_source(cells), ("prompt", "solution"))
    assert isinstance(text, Row)
    assert text.item == {"prompt": "p", "solution_ids": [2]}
    assert str(broken) == "d.csv:3: column 'prompt_ids': token ids must be a list in JSON, such as [3, 1]"
    missing = lines(tmp_path / "m.jsonl", {"prompt_ids": [1], "solution_ids": [2]}, {"solution_ids": [2]})
    assert str(list(Reader(open_source(missing)))[1]) == "m.jsonl:2: column 'prompt_ids' for the prompt is missing"
