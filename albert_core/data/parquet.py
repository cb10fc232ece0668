"""Parquet files as tables, read in parts by pyarrow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ... import UserError
from ..terminal.text import reason_of
from .tabular import Table, in_parts, refuse_duplicates, shown
from .unpacked import check_growth, check_regular, most_unpacked

# Bytes of a row in memory beside its texts.
_ROW_BYTES = 64


def parquet_parts(path: Path, size: int) -> Iterator[Table]:
    """Reads the Parquet file at `path`, `size` rows at a time.

    Cells are JSON values: dates, times and decimal numbers become texts, and NaN becomes None. Columns of types without
    a JSON value, such as binary ones, are left out, and the remarks name them.

    Raises:
        UserError: The file can't be read, is damaged, has columns of one name or no usable column, or unpacks to far
            more than its size.
    """
    import pyarrow
    from pyarrow import parquet

    check_regular(path)
    try:
        schema = parquet.read_schema(path)
        columns = _json_columns(path, schema)
        texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
        # As a dictionary, a column of repeated texts is as small in memory as on disk: equal texts are one object.
        options = {"read_dictionary": texts, "pre_buffer": False, "page_checksum_verification": True}
        with parquet.ParquetFile(path, **options) as file:
            most = most_unpacked(path)
            for group in map(file.metadata.row_group, range(file.num_row_groups)):
                parts = (group.column(index).total_uncompressed_size for index in range(group.num_columns))
                check_growth(path, max(group.total_byte_size, sum(parts)), most)
            batches = file.iter_batches(size, columns=columns, use_threads=False)
            yield from arrow_parts(path, schema, batches, size, most)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UserError(f"{path} can't be read as Parquet ({reason}); give an intact, readable file") from error


def arrow_parts(path: Path, schema: Any, batches: Iterable[Any], size: int, most: float = math.inf) -> Iterator[Table]:
    """Record batches of pyarrow as tables of JSON values (see `parquet_parts`) that unpack to `most` bytes at most."""
    columns = _json_columns(path, schema)
    others = [f"{field.name} ({field.type})" for field in schema if field.name not in columns]
    remarks = (f"{path}: columns without texts or numbers are left out: {shown(others)}",) if others else ()
    for positions, part in in_parts(_rows(path, batches, columns, most), size):
        yield Table(str(path), columns, part, positions, "row", _class_names(schema), remarks)


def _json_columns(path: Path, schema: Any) -> list[str]:
    """The columns that can be JSON values. Raises UserError if there is none, or two have one name."""
    refuse_duplicates(path, schema.names)
    columns = [field.name for field in schema if _is_json(field.type) or _becomes_text(field.type)]
    if not columns:
        raise UserError(
            f"{path} has no column of texts or numbers, it has {shown(schema.names)}; give a file with a text and "
            "a label in each row"
        )
    return columns


def _rows(path: Path, batches: Iterable[Any], columns: list[str], most: float) -> Iterator[tuple[int, int, list[Any]]]:
    """The rows of all batches, each with its position and the characters of its texts."""
    position = unpacked = 0
    for batch in batches:
        for row in zip(*(_values(batch.column(name)) for name in columns), strict=True):
            characters = sum(len(cell) for cell in row if isinstance(cell, str))
            unpacked += characters + _ROW_BYTES
            check_growth(path, unpacked, most)
            yield position, characters, list(row)
            position += 1


def _values(column: Any) -> list[Any]:
    """The cells of a column as JSON values."""
    from pyarrow import string, types

    if types.is_dictionary(column.type):
        known = column.dictionary.to_pylist()
        return [None if index is None else known[index] for index in column.indices.to_pylist()]
    values = column.cast(string()).to_pylist() if _becomes_text(column.type) else column.to_pylist()
    return [None if value != value else value for value in values] if types.is_floating(column.type) else values


def _is_json(kind: Any) -> bool:
    """Whether pyarrow's Python values of a type are JSON values."""
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    plain = types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return plain or types.is_string(kind) or types.is_large_string(kind)


def _becomes_text(kind: Any) -> bool:
    """Whether values of a type, which JSON lacks, are given as texts."""
    from pyarrow import types

    return types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind) or types.is_decimal(kind)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of the ids in columns of classes. `datasets` writes them beside the schema; damaged ones are ignored."""
    written = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(written)["info"]["features"].items()
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}
    # A list's feature is that of its items.
    kinds = {column: feature.get("feature", feature) for column, feature in features if isinstance(feature, dict)}
    names = {column: kind.get("names") for column, kind in kinds.items() if isinstance(kind, dict)}
    return {
        column: listed
        for column, listed in names.items()
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    }
