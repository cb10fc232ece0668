"""The same rows in every format that data sets come in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

# The file formats, by the names of their files. Some names have two: a list or lines in .json, a separator in .csv.
FORMATS = {
    "csv": "rows.csv",
    "semicolons": "rows.csv",
    "tabs": "rows.csv",
    "sep=": "rows.csv",
    "tsv": "rows.tsv",
    "jsonl": "rows.jsonl",
    "json": "rows.json",
    "json lines": "rows.json",
    "parquet": "rows.parquet",
    "csv.gz": "rows.csv.gz",
    "tsv.gz": "rows.tsv.gz",
    "jsonl.gz": "rows.jsonl.gz",
    "json.gz": "rows.json.gz",
}
# Where values have types, and are not all texts.
TYPED = ("jsonl", "json", "json lines", "parquet", "jsonl.gz", "json.gz")
_SEPARATORS = {"semicolons": ";", "tabs": "\t", "sep=": ";", "tsv": "\t", "tsv.gz": "\t"}


def write_rows(kind: str, folder: Path, rows: Sequence[dict[str, Any]], stem: str = "rows") -> Path:
    """A file of the format `kind` with these rows, which all have the same keys."""
    path = folder / FORMATS[kind].replace("rows", stem, 1)
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if kind in ("json", "json.gz"):
        text = json.dumps(list(rows), ensure_ascii=False)
    elif kind not in TYPED:
        buffer = io.StringIO(newline="")
        buffer.write("sep=;\r\n" if kind == "sep=" else "")
        writer = csv.DictWriter(
            buffer, list(rows[0]), delimiter=_SEPARATORS.get(kind, ","), quoting=csv.QUOTE_NONNUMERIC
        )
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path
