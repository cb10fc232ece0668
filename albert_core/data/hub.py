"""Data sets of the Hugging Face Hub, read through `datasets`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ... import UserError
from .columns import EVALUATION_SPLITS, choose_columns
from .tabular import Table, shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

# Short names that papers use, and the repository that holds the data now.
ALIASES = {"banking77": "mteb/banking77"}


def read_hub(
    dataset_id: str, text_column: str | None, label_column: str | None
) -> tuple[Table, Table | None, list[str] | None]:
    """The training split, the test split (None where there is none) and the label names of ``ClassLabel`` columns.

    The tables hold the text and label columns only. Raises UserError when the data set can't be had (no network, no
    such id, a configuration to choose) or has no training split.
    """
    splits = _load(dataset_id)
    if "train" not in splits:
        raise UserError(f"dataset_id {dataset_id!r} has no train split, it has {shown(splits)}; give one that has it")
    evaluation = next((name for name in EVALUATION_SPLITS if name in splits), None)
    train = splits["train"]
    chosen = choose_columns(f"{dataset_id} (train)", train.column_names, text_column, label_column)
    columns = [name for name in (chosen.text, chosen.label, chosen.label_names) if name is not None]
    names = getattr(train.features[chosen.label], "names", None)
    test = _table(f"{dataset_id} ({evaluation})", splits[evaluation], columns) if evaluation else None
    return _table(f"{dataset_id} (train)", train, columns), test, names


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keeps the Hub client's retries off the terminal: what came of them is the error that is raised."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _load(dataset_id: str) -> dict[str, Any]:
    import datasets

    try:
        with quiet_hub():
            loaded = datasets.load_dataset(dataset_id)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"dataset_id {dataset_id!r} is read as a Hub id and can't be loaded ({reason}); without a network give a "
            "local file or folder, or embedded:intents"
        ) from error
    return dict(loaded)


def _table(origin: str, split: Any, columns: list[str]) -> Table:
    missing = [name for name in columns if name not in split.column_names]
    if missing:
        raise UserError(f"{origin} lacks the columns {shown(missing)}, it has {shown(split.column_names)}")
    cells = [list(split[name]) for name in columns]
    return Table(origin, columns, [list(row) for row in zip(*cells, strict=True)], range(len(split)), "row")
