"""Data sets of the Hugging Face Hub, read through `datasets`."""

from __future__ import annotations

import re
from typing import Any

from ... import UserError
from ..terminal.console import quieted
from ..terminal.text import reason_of
from .columns import choose_columns, evaluation_names
from .tabular import Table, shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,2}", re.ASCII)

# Short names from papers, and the repository that holds the data now.
ALIASES = {"banking77": "mteb/banking77", "squad": "rajpurkar/squad"}

# Collections that the Hub knows by one word. What follows the slash is a configuration, not a name.
COLLECTIONS = ("glue", "super_glue")


def read_hub(
    dataset_id: str,
    text_column: str | None,
    label_column: str | None,
    text_pair_column: str | None = None,
    evaluation_split: str | None = None,
) -> tuple[Table, Table | None, list[str] | None]:
    """Reads the columns of texts and labels of a data set on the Hub.

    Returns:
        The training split, the test split (None if there is none) and the label names of a ``ClassLabel`` column.

    Raises:
        UserError: The data set can't be loaded (no network, no such id, a configuration to choose) or has no training
            split.
    """
    splits = hub_splits(dataset_id, evaluation_split)
    train = splits["train"]
    chosen = choose_columns(f"{dataset_id} (train)", train.column_names, text_column, label_column, text_pair_column)
    columns = [name for name in (*chosen.texts, chosen.label, chosen.label_names) if name is not None]
    names = getattr(train.features[chosen.label], "names", None)
    tables = [hub_table(f"{dataset_id} ({name})", rows, columns) for name, rows in splits.items()]
    return tables[0], tables[1] if len(tables) > 1 else None, names


def hub_splits(dataset_id: str, evaluation_split: str | None) -> dict[str, Any]:
    """The training split and the evaluation split, if there is one, by name.

    Raises:
        UserError: The data set can't be loaded, or lacks the training split or the requested evaluation split.
    """
    splits = _load(dataset_id)
    if "train" not in splits:
        raise UserError(f"dataset_id {dataset_id!r} has no train split, it has {shown(splits)}; give one that has it")
    evaluation = next((name for name in evaluation_names(evaluation_split) if name in splits), None)
    if evaluation is None and evaluation_split is not None:
        raise UserError(
            f"dataset_id {dataset_id!r} has no {evaluation_split} split, it has {shown(splits)}; drop evaluation_split"
        )
    return {name: splits[name] for name in ("train", evaluation) if name is not None}


def hub_is_away() -> bool:
    """Whether the Hub can't be reached. Its own client would retry for half a minute before it says so."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    # The client's HTTP library, and with it the exceptions, changes between releases.
    except Exception:  # noqa: BLE001
        return True
    return False


def hub_name(dataset_id: str) -> tuple[str, ...]:
    """The repository and, if `dataset_id` names one, the configuration: ("glue", "mrpc"), ("mteb/banking77",)."""
    repository, _, last = dataset_id.rpartition("/")
    return (repository, last) if repository in COLLECTIONS or "/" in repository else (dataset_id,)


def _load(dataset_id: str) -> dict[str, Any]:
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        # Offline, `datasets` reads its cache without asking the Hub first.
        datasets.config.HF_HUB_OFFLINE = hub_is_away()
        # Its retries end in the error that is raised.
        with quieted("huggingface_hub"):
            loaded = datasets.load_dataset(*hub_name(dataset_id))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"dataset_id {dataset_id!r} is read as a Hub id and can't be loaded ({reason_of(error)}); "
            "without a network give a local file or folder, or embedded:intents"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return dict(loaded)


def hub_table(origin: str, split: Any, columns: list[str]) -> Table:
    """The given columns of a split. Raises UserError if it lacks one."""
    missing = [name for name in columns if name not in split.column_names]
    if missing:
        raise UserError(f"{origin} lacks the columns {shown(missing)}, it has {shown(split.column_names)}")
    cells = [list(split[name]) for name in columns]
    return Table(origin, columns, [list(row) for row in zip(*cells, strict=True)], range(len(split)), "row")
