"""CSV, TSV and JSONL files as tables. Cells are kept byte for byte, and errors name the line."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ... import UserError
from ..config.parsing import decoded, json_kind, parse_json
from ..terminal.text import clean, shorten

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")

# Rows read at a time: enough for batches of texts of similar length. Fewer if they have more characters than that.
PART_ROWS = 8192
PART_CHARACTERS = 1 << 23

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NAMED_DELIMITER = re.compile(r"sep=([,;\t])")
_QUOTED = re.compile(r'"(?:[^"]|"")*("|$)')

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        origin: The table's name in messages, such as a file name.
        rows: A list of cells per row, as long as `columns`. Cells of a JSONL file may be any JSON value, and None if
            the object lacks the column.
        positions: For each row, the number that `unit` counts: "line" (first line of a CSV row, from 1) or "row" (from
            0, as `datasets` counts).
    """

    origin: str
    columns: list[str]
    rows: list[list[Any]]
    positions: Sequence[int]
    unit: str = "line"

    def column(self, name: str) -> list[Any]:
        """All cells under `name`, in row order."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def aligned(self, columns: Sequence[str]) -> list[list[Any]]:
        """The rows with their cells under `columns`. Cells are None if the table lacks a column."""
        if list(columns) == self.columns:
            return self.rows
        places = {name: index for index, name in enumerate(self.columns)}
        return [[row[places[name]] if name in places else None for name in columns] for row in self.rows]

    def place(self, row: int) -> str:
        """The position of a row for messages: ``train.csv, line 12``."""
        return f"{self.origin}, {self.unit} {self.positions[row]}"


def read_table(path: Path) -> Table:
    """Reads the whole file at `path`. Raises UserError as `table_parts` does."""
    parts = list(table_parts(path))
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    rows = [row for part in parts for row in part.aligned(columns)]
    return Table(str(path), columns, rows, [line for part in parts for line in part.positions])


def table_parts(path: Path, size: int = PART_ROWS) -> Iterator[Table]:
    """Reads the file at `path` in the format of its suffix, `size` rows at a time.

    CSV and TSV follow RFC 4180 (quoted line breaks, doubled quotes, LF or CRLF) with a header line. Both are UTF-8,
    with or without a byte order mark. If the header lacks the usual separator, another is tried (see
    `_with_delimiter`). A column without a name is called by its position, ``Unnamed: 0``. Blank lines between rows are
    skipped. JSONL has one object per line. The columns of a part are those of its own objects.

    Raises:
        UserError: An unknown suffix, an unreadable or empty file, bytes that are not UTF-8, NUL, unclosed quotes, rows
            of another width than the header, repeated columns, or a line that is no object. The message names file and
            line.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        allowed = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{path} is no data file known here; allowed are {allowed}; convert it to one of them")
    lines = _lines(path)
    parts = _jsonl_parts(path, lines, size) if suffix == ".jsonl" else _delimited_parts(path, lines, size)
    empty = True
    for part in parts:
        empty = False
        yield part
    if empty:
        raise UserError(f"{path} has no rows below its header; give a file with at least one text and label")


def _lines(path: Path) -> Iterator[str]:
    """The file's lines as text, each with the LF that ends it."""
    # A pipe can be read only once, and its reader waits for a writer that may never come.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} can't be read (it is no regular file); save what it gives as a file first")
    try:
        with path.open("rb") as file:
            while (begin := file.read(1 << 16)) and not begin.strip():
                pass
            if not begin:
                raise UserError(f"{path} is empty; give a file with a header line and at least one row")
            file.seek(0)
            offset = 0
            for number, line in enumerate(file, start=1):
                yield decoded(line, path, "save it again as UTF-8 text", offset, number)
                offset += len(line)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give a readable file") from error


def _delimited_parts(path: Path, lines: Iterable[str], size: int) -> Iterator[Table]:
    lines, delimiter = _with_delimiter(path, iter(lines))
    # The parser accepts a lone CR as a line end only if the line is passed alone. newline="" splits there.
    cut = (part for line in lines for part in io.StringIO(line, newline=""))
    numbered = _numbered_rows(path, csv.reader(cut, delimiter=delimiter, strict=True))
    _, header = next(numbered, (0, []))
    columns = _named([name.strip() for name in header])
    if not columns:
        raise UserError(f"{path} has only blank lines; give a file with a header line and at least one row")
    _refuse_duplicates(path, columns)

    def rows() -> Iterator[tuple[int, int, list[Any]]]:
        for line, row in numbered:
            if len(row) != len(columns):
                raise UserError(
                    f"{path}, line {line} has {len(row)} fields, the header has {len(columns)} ({shown(columns)}); put "
                    f"quotes around a field that holds a {_DELIMITERS[delimiter]} or a line break"
                )
            yield line, sum(map(len, row)), row

    for positions, part in _parts(rows(), size):
        yield Table(str(path), columns, part, positions)


def _with_delimiter(path: Path, lines: Iterator[str]) -> tuple[Iterator[str], str]:
    """All lines again, and the field separator: the suffix's, or the one that the header has.

    In many countries, spreadsheets write semicolons into a .csv, and some write a line ``sep=;`` before the header.
    """
    blank: list[str] = []
    header = ""
    for header in lines:
        if header.strip():
            break
        blank.append(header)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
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


def _jsonl_parts(path: Path, lines: Iterable[str], size: int) -> Iterator[Table]:
    # Only LF ends a line. Texts may contain U+2028 and others that str.splitlines would split at.
    numbered = enumerate(lines, start=1)
    objects = ((number, len(line), _object(path, number, line)) for number, line in numbered if line.strip())
    for positions, part in _parts(objects, size):
        columns = list(dict.fromkeys(key for entry in part for key in entry))
        yield Table(str(path), columns, [[entry.get(key) for key in columns] for entry in part], positions)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object on line `number`."""
    value = parse_json(line, path, "write one object a line", number)
    if not isinstance(value, dict):
        raise UserError(
            f"{path}:{number}: a JSON {json_kind(value)}, not an object; "
            'write lines such as {"text": "...", "label": "..."}'
        )
    return value


def _parts(rows: Iterable[tuple[int, int, _Row]], size: int) -> Iterator[tuple[list[int], list[_Row]]]:
    """Line numbers and rows, at most `size` at a time, fewer if they are long (rows come with their characters)."""
    lines: list[int] = []
    part: list[_Row] = []
    characters = 0
    for line, length, row in rows:
        lines.append(line)
        part.append(row)
        characters += length
        if len(part) == size or characters > PART_CHARACTERS:
            yield lines, part
            lines, part, characters = [], [], 0
    if part:
        yield lines, part


def _refuse_duplicates(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UserError(f"{path} has columns that appear twice: {shown(twice)}; rename one of each")


def shown(values: Iterable[Any], limit: int = 8) -> str:
    """Values on one line for a message: quoted, long ones cut, followed by the number of omitted ones."""
    listed = list(values)
    texts = [shorten(clean(repr(value)), 60) for value in listed[:limit]]
    more = len(listed) - limit
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")
