"""CSV, TSV, JSON and Parquet files as tables. Texts are kept byte for byte, and errors name the line or row."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ... import UserError
from ..config.parsing import decoded, json_kind, parse_json
from .parquet import parquet_parts
from .tabular import PART_ROWS, Table, in_parts, joined, refuse_duplicates, shown
from .unpacked import read_bytes, read_lines, suffix_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz")

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NAMED_DELIMITER = re.compile(r"sep=([^\w\s\"]|\t)")
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')


def read_table(path: Path) -> Table:
    """Reads the whole file at `path`. Raises UserError as `table_parts` does."""
    return joined(list(table_parts(path)))


def table_parts(path: Path, size: int = PART_ROWS) -> Iterator[Table]:
    """Reads the file at `path` in the format of its suffix, `size` rows at a time.

    Texts are UTF-8, with or without a byte order mark, and may be compressed by gzip (``.csv.gz``).

    - CSV and TSV follow RFC 4180 (quoted line breaks, doubled quotes, LF or CRLF) with a header line. If the header
      lacks the usual separator, another is tried (see `_with_delimiter`). A column without a name is called by its
      position, ``Unnamed: 0``. Blank lines between rows, and empty fields behind the last column, are skipped.
    - JSONL has one object per line, JSON the same or a list of objects. The columns of a part are those of its own
      objects.
    - Parquet is read by `parquet_parts`.

    Raises:
        UserError: An unknown suffix, an unreadable, damaged or empty file, one that unpacks without a limit, bytes that
            are not UTF-8, NUL, unclosed quotes, rows of another width than the header, repeated columns, or a line that
            is no object. The message names file and line.
    """
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        allowed = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{path} is no data file known here; allowed are {allowed}; convert it to one of them")
    suffix = suffix_of(path)
    if suffix == ".parquet":
        parts = parquet_parts(path, size)
    elif suffix == ".jsonl" or (suffix == ".json" and json_form(path) != "list"):
        parts = _jsonl_parts(path, size)
    else:
        parts = (_json_list_parts if suffix == ".json" else _delimited_parts)(path, size)
    empty = True
    for part in parts:
        empty = False
        yield part
    if empty:
        raise UserError(f"{path} has no rows; give a file with at least one text and label")


def json_form(path: Path) -> Literal["list", "lines", "object"]:
    """What a .json file holds, judged by its first lines: a list, an object per line, or anything else."""
    lines = (line.strip() for line in _lines(path) if line.strip())
    first = next(lines, "")
    if first.startswith("["):
        return "list"
    return "lines" if first.endswith("}") and next(lines, None) else "object"


def read_json_values(path: Path, fix: str) -> Any:
    """The value in a .json or .json.gz file. Raises UserError as `read_bytes` and `parse_json` do."""
    return parse_json(decoded(read_bytes(path), path, "give an intact file"), path, fix)


def _lines(path: Path) -> Iterator[str]:
    """The file's lines as text, each with the LF that ends it. Raises UserError if none has a character to show."""
    offset = 0
    blank = True
    for number, line in enumerate(read_lines(path), start=1):
        blank = blank and not line.strip()
        yield decoded(line, path, "save it again as UTF-8 text", offset, number)
        offset += len(line)
    if blank:
        raise UserError(f"{path} is empty; give a file with at least one text and label")


def _delimited_parts(path: Path, size: int) -> Iterator[Table]:
    usual = "\t" if suffix_of(path) == ".tsv" else ","
    lines, delimiter = _with_delimiter(_lines(path), usual)
    # The parser accepts a lone CR as a line end only if the line is passed alone. newline="" splits there.
    cut = (part for line in lines for part in io.StringIO(line, newline=""))
    numbered = _numbered_rows(path, csv.reader(cut, delimiter=delimiter, strict=True))
    _, header = next(numbered, (0, []))
    columns = _named([name.strip() for name in header])
    if not columns:
        raise UserError(f"{path} has only blank lines; give a file with a header line and at least one row")
    refuse_duplicates(path, columns)
    sign = _DELIMITERS.get(delimiter, f"{delimiter} sign")
    said = f"{path}: the fields are separated by {sign}s"
    remarks = () if delimiter == usual else (said,)

    def rows() -> Iterator[tuple[int, int, list[Any]]]:
        for line, row in numbered:
            # Spreadsheets write empty cells behind the last column.
            if not any(row[len(columns) :]):
                del row[len(columns) :]
            if len(row) != len(columns):
                raise UserError(
                    f"{path}, line {line} has {len(row)} fields, the header has {len(columns)} ({shown(columns)}); put "
                    f"quotes around a field that holds a {sign} or a line break"
                )
            yield line, sum(map(len, row)), row

    for positions, part in in_parts(rows(), size):
        yield Table(str(path), columns, part, positions, remarks=remarks)


def _with_delimiter(lines: Iterator[str], usual: str) -> tuple[Iterator[str], str]:
    """All lines again, and the field separator: the usual one if the header has it, else another that it has.

    In many countries, spreadsheets write semicolons into a .csv, and some write a line ``sep=;`` before the header.
    """
    blank: list[str] = []
    header = ""
    for header in lines:
        if header.strip():
            break
        blank.append(header)
    named = _NAMED_DELIMITER.fullmatch(header.strip("\r\n"))
    if named:
        # An empty line in its place keeps the line numbers right.
        return chain(blank, ["\n"], lines), named[1]
    unquoted = _QUOTED.sub("", header)
    delimiter = next((sign for sign in (usual, *_DELIMITERS) if sign in unquoted), usual)
    return chain(blank, [header], lines), delimiter


def _named(columns: list[str]) -> list[str]:
    """The columns, each with a name. Data frames write their row numbers without one."""
    taken = set(columns)
    found = []
    for place, name in enumerate(columns):
        unnamed = f"Unnamed: {place}"
        while unnamed in taken:
            unnamed += "_"
        found.append(name or unnamed)
    return found


def _numbered_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that aren't blank, each with the number of its first line."""
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(sys.maxsize)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {_csv_reason(error)}") from error
        finally:
            # The limit applies to the whole process.
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _csv_reason(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end of data" in message:
        return (
            "a quoted field begins here and its quote is never closed; close it, and write a quote inside a text twice"
        )
    return f"the quoting is wrong ({message}); quote the whole field, and write a quote inside a text twice"


def _jsonl_parts(path: Path, size: int) -> Iterator[Table]:
    fix = "write one object a line" + (", or a list of objects" if suffix_of(path) == ".json" else "")
    # Only LF ends a line. Texts may contain U+2028 and others that str.splitlines would split at.
    numbered = ((number, line) for number, line in enumerate(_lines(path), start=1) if line.strip())
    objects = (
        (number, len(line), _object(f"{path}:{number}", parse_json(line, path, fix, number)))
        for number, line in numbered
    )
    yield from _object_parts(path, objects, "line", size)


def _json_list_parts(path: Path, size: int) -> Iterator[Table]:
    values = read_json_values(path, "give a list of objects, or one object a line")
    objects = ((number, _object(f"{path}, item {number}", value)) for number, value in enumerate(values, start=1))
    measured = (
        (number, sum(len(cell) for cell in entry.values() if isinstance(cell, str)), entry) for number, entry in objects
    )
    yield from _object_parts(path, measured, "item", size)


def _object_parts(
    path: Path, objects: Iterable[tuple[int, int, dict[str, Any]]], unit: str, size: int
) -> Iterator[Table]:
    for positions, part in in_parts(objects, size):
        columns = list(dict.fromkeys(key for entry in part for key in entry))
        yield Table(str(path), columns, [[entry.get(key) for key in columns] for entry in part], positions, unit)


def _object(place: str, value: Any) -> dict[str, Any]:
    """`value` if it is an object. Raises UserError otherwise."""
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: a JSON {json_kind(value)}, not an object; "
            'write objects such as {"text": "...", "label": "..."}'
        )
    return value
