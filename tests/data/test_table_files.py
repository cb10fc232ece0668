"""CSV, TSV and JSONL files, nasty ones included."""

from __future__ import annotations

import csv
import io
import os
import random
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.data.table_files import read_table, table_parts

pytestmark = pytest.mark.core


def write(folder: Path, content: bytes | str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "\r" not in message
    return message


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("text,label\na,1\n", [["a", "1"]]),
        ("text,label\r\na,1\r\n", [["a", "1"]]),
        ("text,label\na,1", [["a", "1"]]),
        ("\ufefftext,label\na,1\n", [["a", "1"]]),
        ('text,label\n"one\ntwo",1\n', [["one\ntwo", "1"]]),
        ('text,label\r\n"one\r\ntwo\n\nthree",1\r\n', [["one\r\ntwo\n\nthree", "1"]]),
        ('text,label\n"say ""hi"", twice",1\n', [['say "hi", twice', "1"]]),
        ("text,label\n  padded\t,1\n", [["  padded\t", "1"]]),
        ('text,label\n5" nails,1\n', [['5" nails', "1"]]),
        ("text,label\n\na,1\n\n\nb,2\n\n", [["a", "1"], ["b", "2"]]),
        (" text , label \na,1\n", [["a", "1"]]),
        ("text,label\nzażółć 中文 🙂\u2028x,1\n", [["zażółć 中文 🙂\u2028x", "1"]]),
        ('text,label\n,1\n"",2\n', [["", "1"], ["", "2"]]),
    ],
)
def test_csv_cells_are_kept_as_written(tmp_path: Path, content: str, rows: list[list[str]]) -> None:
    table = read_table(write(tmp_path, content))
    assert table.columns == ["text", "label"]
    assert table.rows == rows


def test_tsv_takes_commas_and_quotes_tabs(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, 'text\tlabel\na, b\t1\n"c\td"\t2\n', "rows.tsv"))
    assert table.rows == [["a, b", "1"], ["c\td", "2"]]


def test_any_text_survives_a_csv_writer(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [["".join(rng.choices(" ab\",;\n\r\t'\\é", k=rng.randrange(12))), str(n)] for n in range(500)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([["text", "label"], *rows])
    assert read_table(write(tmp_path, buffer.getvalue())).rows == rows


def test_positions_are_the_lines_where_rows_begin(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, 'text,label\n"a\nb\nc",1\n\nd,2\n'))
    assert list(table.positions) == [2, 6]
    assert table.place(1).endswith("rows.csv, line 6")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["is empty"]),
        (b" \n\n", ["is empty"]),
        (b"\xef\xbb\xbf", ["blank lines"]),
        (b"text,label\n", ["no rows"]),
        (b"text,label\n\n\n", ["no rows"]),
        (b"text,label\na,1\nb\n", ["line 3", "1 fields", "header has 2"]),
        (b'text,label\n"x\ny",1\nb,2,3\n', ["line 4", "3 fields"]),
        (b'text,label\na,1\n"never closed,2\nb,3\n', ["line 3", "never closed"]),
        (b'text,label\n"closed" early,1\n', ["line 2", "quoting"]),
        (b"text,label,text\na,1,b\n", ["twice", "'text'"]),
        (b"text,label\na\x00b,1\n", ["NUL", "byte offset 12", "line 2"]),
        (b"text,label\nok,0\ncaf\xe9,1\n", ["not UTF-8", "0xe9", "byte offset 19", "line 3"]),
        (b"\xef\xbb\xbftext,label\ncaf\xe9,1\n", ["not UTF-8", "byte offset 17", "line 2"]),
        ("text,label\na,1\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ],
)
def test_defective_csv_is_refused_by_place(tmp_path: Path, content: bytes, said: list[str]) -> None:
    path = write(tmp_path, content)
    message = refusal(path)
    assert str(path) in message
    for part in said:
        assert part in message


def test_jsonl_keeps_types_and_line_separators(tmp_path: Path) -> None:
    content = '{"text": "a\\nb\u2028c", "label": 1}\r\n\n{"label": "x", "text": "d", "extra": null}\n'
    table = read_table(write(tmp_path, content, "rows.jsonl"))
    assert table.columns == ["text", "label", "extra"]
    assert table.rows == [["a\nb\u2028c", 1, None], ["d", "x", None]]
    assert list(table.positions) == [1, 3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "label": 1', "truncated JSON"),
        ("['text']", "not valid JSON"),
        ('["a", 1]', "JSON list"),
        ('{"text": "a", "label": 1},', "not valid JSON (Extra data)"),
        ('{"n": NaN}', "NaN is no JSON number, a missing value is null"),
        ("3", "JSON number"),
        ('{"n": ' + "9" * 5000 + "}", "5,000 digits"),
        ('{"n": 1e999}', "too large"),
        ('{"n": Infinity}', "Infinity is no JSON number"),
        ("[" * 100_000, "nested"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested"),
        ('{"text": "a", "label": 1, "text": "b"}', "the key 'text' stands twice"),
        ('{"text": "a", "label": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
    ],
)
def test_defective_jsonl_is_refused_by_line(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, '{"text": "a", "label": 1}\n' + line + "\n", "rows.jsonl")
    message = refusal(path)
    assert f"{path}:2: " in message
    assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[["a", 1]]', "item 1: a JSON list, not an object"),
        ('[{"text": "a", "label": 1},\n["b", 2]]', "item 2: a JSON list, not an object"),
        ("[[[]]]", "item 1: a JSON list, not an object"),
        ('["a", "b"]', "item 1: a JSON text, not an object"),
        ("[null]", "item 1: a JSON null, not an object"),
        ('["a", 1]\n["b", 2]\n', "rows.json:2"),
        ("[]", "has no rows"),
    ],
)
def test_a_list_of_anything_but_objects_is_refused_by_item(tmp_path: Path, content: str, said: str) -> None:
    assert said in refusal(write(tmp_path, content, "rows.json"))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_of_a_file_are_the_file(tmp_path: Path, size: int) -> None:
    rng = random.Random(6)
    rows = [["".join(rng.choices(" ab\",;\n\r\t'é\u2028", k=rng.randrange(1, 12))), str(n)] for n in range(20)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["text", "label"], *rows])
    path = write(tmp_path, "\ufeff" + buffer.getvalue())
    parts = list(table_parts(path, size))
    assert [len(part.rows) for part in parts] == [min(size, 20 - start) for start in range(0, 20, size)]
    assert [row for part in parts for row in part.rows] == rows
    assert [part.place(0) for part in parts] == [read_table(path).place(start) for start in range(0, 20, size)]


def test_objects_of_a_later_part_may_have_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "a"}\n{"label": 1, "text": "b"}\n{"x": 2}\n', "rows.jsonl")
    assert [part.columns for part in table_parts(path, 1)] == [["text"], ["label", "text"], ["x"]]
    table = read_table(path)
    assert table.columns == ["text", "label", "x"]
    assert [row for part in table_parts(path, 1) for row in part.aligned(table.columns)] == table.rows


def test_other_suffixes_and_folders_are_refused(tmp_path: Path) -> None:
    assert ".csv, .tsv, .jsonl, .json, .parquet" in refusal(write(tmp_path, "a", "rows.xlsx"))
    (tmp_path / "folder.csv").mkdir()
    assert "can't be read" in refusal(tmp_path / "folder.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert "no regular file" in refusal(tmp_path / "pipe.csv")


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_cell_may_be_of_any_length(tmp_path: Path, quote: str) -> None:
    before = csv.field_size_limit()
    long = "x, \n" * 100_000 if quote else "x" * 400_000
    table = read_table(write(tmp_path, f"text,label\n{quote}{long}{quote},1\nb,2\n"))
    assert table.rows == [[long, "1"], ["b", "2"]]
    assert csv.field_size_limit() == before, "the limit is the whole process's"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "text;label\na, b;1\nc;2\n"),
        ("rows.csv", '"text";"label"\n"a, b";"1"\n"c";"2"\n'),
        ("rows.csv", "\ufeffsep=;\r\ntext;label\r\na, b;1\r\nc;2\r\n"),
        ("rows.csv", "sep=|\ntext|label\na, b|1\nc|2\n"),
        ("rows.csv", "text\tlabel\na, b\t1\nc\t2\n"),
        ("rows.csv", "text;label\na, b;1;;\nc;2;\n"),
        ("rows.tsv", "text;label\na, b;1\nc;2\n"),
        ("rows.tsv", 'text,label\n"a, b",1\nc,2\n'),
    ],
)
def test_another_separator_is_seen_by_the_header(tmp_path: Path, name: str, content: str) -> None:
    table = read_table(write(tmp_path, content, name))
    assert table.columns == ["text", "label"]
    assert table.rows == [["a, b", "1"], ["c", "2"]]


def test_the_usual_separator_comes_first(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, '"a;b",label;x\n1;2,3\n'))
    assert table.columns == ["a;b", "label;x"]
    assert read_table(write(tmp_path, '"a;b"\n1;2\n')).columns == ["a;b"], "one column, named in quotes"


def test_the_line_that_names_the_separator_is_counted(tmp_path: Path) -> None:
    assert "line 4" in refusal(write(tmp_path, "sep=;\ntext;label\na;1\nb\n"))
    assert "semicolon" in refusal(write(tmp_path, "text;label\na;1\nb\n"))


def test_columns_without_a_name_are_called_by_their_place(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, ",text,label\n0,a,1\n")).columns == ["Unnamed: 0", "text", "label"]
    ends = read_table(write(tmp_path, "text,label, ,\na,1,,\n"))
    assert ends.columns == ["text", "label", "Unnamed: 2", "Unnamed: 3"]
    assert read_table(write(tmp_path, "Unnamed: 1,\na,1\n")).columns == ["Unnamed: 1", "Unnamed: 1_"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_in_any_of_three_ways(tmp_path: Path, end: str, mark: str) -> None:
    lines = ["text,label", '"a\nb\rc\r\nd",1', "", "e,2"]
    assert read_table(write(tmp_path, mark + end.join(lines))).rows == [["a\nb\rc\r\nd", "1"], ["e", "2"]]
