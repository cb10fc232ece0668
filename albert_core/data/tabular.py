"""CSV, TSV and JSONL files as tables: every cell kept byte for byte, every defect named with its line."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    origin: what messages call the table, such as a file name. rows: one list of cells a row, as long as `columns`; a
    cell of a JSONL file may be any JSON value, None where the object lacks the column. positions: for each row, the
    number that `unit` counts ("line": the first line of a CSV row, from 1; "row": from 0, as `datasets` counts).
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

    def place(self, row: int) -> str:
        """Where a row stands, for messages: ``train.csv, line 12``."""
        return f"{self.origin}, {self.unit} {self.positions[row]}"


def read_table(path: Path) -> Table:
    """The file at `path`, in the format its suffix names.

    CSV and TSV follow RFC 4180 (quoted line breaks, doubled quotes, LF or CRLF) with a header line; both are UTF-8,
    with or without a byte order mark. Blank lines between rows are skipped. JSONL holds one object a line.

    Raises UserError naming file and line for an unknown suffix, an unreadable or empty file, bytes that are not UTF-8,
    NUL, unclosed quotes, rows of another width than the header, columns that appear twice, a line that is no object.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        allowed = ", ".join(TABLE_SUFFIXES)
        raise UserError(f"{path} is no data file known here; allowed are {allowed}; convert it to one of them")
    text = _decoded(path)
    if suffix == ".jsonl":
        table = _read_jsonl(path, text)
    else:
        table = _read_delimited(path, text, "\t" if suffix == ".tsv" else ",")
    if not table.rows:
        raise UserError(f"{path} has no rows below its header; give a file with at least one text and label")
    return table


def _decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give a readable file") from error
    if raw.startswith(_UTF16_MARKS):
        raise UserError(f"{path} is UTF-16 (by its first two bytes); allowed is UTF-8; save it again as UTF-8")
    if not raw.strip():
        raise UserError(f"{path} is empty; give a file with a header line and at least one row")
    nul = raw.find(b"\0")
    if nul >= 0:
        raise UserError(
            f"{path} has a NUL byte at byte offset {nul} (line {_line_at(raw, nul)}): it is no text file, or a damaged "
            "one; save it again as UTF-8 text"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind the byte order mark.
        mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
        offset = error.start + mark
        raise UserError(
            f"{path} is not UTF-8: byte 0x{raw[offset]:02x} at byte offset {offset} (line {_line_at(raw, offset)}); "
            "save it again as UTF-8"
        ) from error


def _line_at(raw: bytes, offset: int) -> int:
    return raw.count(b"\n", 0, offset) + 1


def _read_delimited(path: Path, text: str, delimiter: str) -> Table:
    # newline="" hands quoted line breaks to the parser unchanged.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    numbered = _numbered_rows(path, reader)
    _, header = next(numbered, (0, []))
    columns = [name.strip() for name in header]
    if not columns:
        raise UserError(f"{path} has only blank lines; give a file with a header line and at least one row")
    _refuse_duplicates(path, columns)
    rows: list[list[Any]] = []
    positions: list[int] = []
    for line, row in numbered:
        if len(row) != len(columns):
            raise UserError(
                f"{path}, line {line} has {len(row)} fields, the header has {len(columns)} ({shown(columns)}); put "
                f"quotes around a field that holds a {'tab' if delimiter == chr(9) else 'comma'} or a line break"
            )
        rows.append(list(row))
        positions.append(line)
    return Table(str(path), columns, rows, positions)


def _numbered_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that aren't blank, each with the line it begins on."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {_csv_reason(error)}") from error
        if row is None:
            return
        if row:
            yield line, row


def _csv_reason(error: csv.Error) -> str:
    message = str(error)
    if "field larger than field limit" in message:
        return (
            f"a field is longer than {csv.field_size_limit():,} characters, mostly from a quote that is never closed; "
            "close it, or shorten the text"
        )
    if "unexpected end of data" in message:
        return (
            "a quoted field begins here and its quote is never closed; close it, and write a quote inside a text twice"
        )
    return f"the quoting is wrong ({message}); quote the whole field, and write a quote inside a text twice"


def _read_jsonl(path: Path, text: str) -> Table:
    # Only LF ends a line: a text may hold U+2028 and others that str.splitlines would cut at.
    objects: list[dict[str, Any]] = []
    positions: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error).partition(";")[0]
            raise UserError(f"{path}:{number} is not JSON ({reason}); write one object a line") from error
        if "\\u" in line:
            refuse_half_pairs(f"{path}, line {number}", value)
        if not isinstance(value, dict):
            raise UserError(
                f"{path}:{number} is a JSON {type(value).__name__}, not an object; "
                'write lines such as {"text": "...", "label": "..."}'
            )
        objects.append(value)
        positions.append(number)
    columns = list(dict.fromkeys(key for entry in objects for key in entry))
    return Table(str(path), columns, [[entry.get(key) for key in columns] for entry in objects], positions)


def _refuse_duplicates(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UserError(f"{path} has columns that appear twice: {shown(twice)}; rename one of each")


def is_unicode(text: str) -> bool:
    """Whether `text` can be written down: no half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_half_pairs(place: str, value: Any) -> None:
    """Raises UserError where any text in a JSON value, keys included, holds half of a surrogate pair.

    JSON can escape one in a file that is UTF-8, and no file that a run writes could hold it.
    """
    if not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{place} has half of a surrogate pair (\\ud800-\\udfff) in a text; remove it")


def shown(values: Iterable[Any], limit: int = 8) -> str:
    """Values on one line for a message: quoted, long ones cut, the number of those left out at the end."""
    listed = list(values)
    texts = [repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..." for value in listed[:limit]]
    more = len(listed) - limit
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")
