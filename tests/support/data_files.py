"""The same rows in every format that data sets come in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
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
# Where a column may have values of several types.
JSON = tuple(kind for kind in TYPED if kind != "parquet")
# What is wrong with a whole file, whatever its format: how its intact bytes change.
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "blank": lambda _: b" \n \n",
    "cut at its end": lambda data: data.rstrip()[:-1],
    "cut in half": lambda data: data[: len(data) // 2 - 3],
    "another format": lambda _: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 9,
    "bytes after the end": lambda data: data + b"\xff\x00\xff",
}
_SEPARATORS = {"semicolons": ";", "tabs": "\t", "sep=": ";", "tsv": "\t", "tsv.gz": "\t"}


def write_rows(kind: str, folder: Path, rows: Sequence[dict[str, Any]], stem: str = "rows") -> Path:
    """A file of the format `kind` with these rows, which all have the same keys; or a "saved" folder."""
    if kind == "saved":
        return saved(folder / stem, rows)
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


def saved(folder: Path, rows: Sequence[dict[str, Any]], **splits: Sequence[dict[str, Any]]) -> Path:
    """A folder as `datasets` saves it: one split, or several by name."""
    made = datasets.Dataset.from_list(list(rows))
    datasets.disable_progress_bars()
    try:
        if splits:
            parts = {name: datasets.Dataset.from_list(list(part)) for name, part in splits.items()}
            datasets.DatasetDict(train=made, **parts).save_to_disk(str(folder))
        else:
            made.save_to_disk(str(folder), num_shards=2)
    finally:
        datasets.enable_progress_bars()
    return folder
