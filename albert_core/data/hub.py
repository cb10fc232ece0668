"""Data sets that `datasets` reads: of the Hugging Face Hub, and folders that it saved to disk."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import UserError
from ..config.parsing import read_json_object
from ..terminal.console import quieted
from ..terminal.text import reason_of
from .columns import Columns, evaluation_names
from .parquet import arrow_parts
from .tabular import PART_ROWS, Table, shown
from .unpacked import check_growth, check_regular, most_unpacked

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,2}", re.ASCII)

# Short names from papers, and the repository that holds the data now.
ALIASES = {"banking77": "mteb/banking77", "squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}

# Collections that the Hub knows by one word. What follows the slash is a configuration, not a name.
COLLECTIONS = ("glue", "super_glue")

_SAVE = "save the data set again by save_to_disk"

# Numbers of fields in Arrow's Message.fbs: of Message, DictionaryBatch and (the last two) RecordBatch.
_HEADER, _DATA, _BUFFERS, _COMPRESSION = 2, 1, 2, 3


def read_hub(
    dataset_id: str,
    choose: Callable[[str, Sequence[str]], Columns],
    evaluation_split: str | None = None,
    folder: Path | None = None,
) -> tuple[Table, Table | None]:
    """Reads the columns of texts and labels of a data set on the Hub, or one that was saved to `folder`.

    Args:
        choose: Chooses the columns of a table, given its name and all its columns.

    Returns:
        The training split and the evaluation split (None if there is none).

    Raises:
        UserError: The data set can't be loaded (no network, no such id, a configuration to choose) or has no training
            split.
    """
    splits = hub_splits(dataset_id, evaluation_split, folder)
    train = splits["train"]
    chosen = choose(f"{dataset_id} (train)", train.column_names)
    columns = [name for name in (*chosen.texts, *chosen.labels, chosen.label_names) if name is not None]
    tables = [hub_table(f"{dataset_id} ({name})", rows, columns) for name, rows in splits.items()]
    return tables[0], tables[1] if len(tables) > 1 else None


def hub_splits(dataset_id: str, evaluation_split: str | None, folder: Path | None = None) -> dict[str, Any]:
    """The training split and the evaluation split, if there is one, by name.

    Raises:
        UserError: The data set can't be loaded, or lacks the training split or the requested evaluation split.
    """
    splits = _load(dataset_id) if folder is None else _saved(folder)
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


def _saved(folder: Path) -> dict[str, Any]:
    """The splits that `datasets` saved to `folder`, by name. A lone one is all training."""
    index = folder / "dataset_dict.json"
    if not index.is_file():
        return {"train": _saved_split(folder)}
    names = _plain_names(index, read_json_object(index, _SAVE).get("splits"))
    return {name: _saved_split(folder / name) for name in names}


def saved_parts(folder: Path, size: int = PART_ROWS) -> Iterator[Table]:
    """Reads a split that `datasets` saved to `folder`, `size` rows at a time, as `parquet_parts` reads a file.

    Raises:
        UserError: The folder has several splits, or can't be read.
    """
    index = folder / "dataset_dict.json"
    if index.is_file():
        names = _plain_names(index, read_json_object(index, _SAVE).get("splits"))
        raise UserError(f"{folder} has the splits {shown(names)}; give the folder of one, such as {folder / names[-1]}")
    rows = _saved_split(folder).data.table
    yield from arrow_parts(folder, rows.schema, rows.to_batches(size), size)


def _saved_split(folder: Path) -> Any:
    import datasets
    import pyarrow

    state = folder / "state.json"
    listed = read_json_object(state, _SAVE).get("_data_files")
    if listed == []:
        raise UserError(f"{folder} has no rows; give a split with at least one row")
    entries = listed if isinstance(listed, list) else []
    files = _plain_names(state, [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries])
    for file in files:
        check_regular(folder / file)
    try:
        for file in files:
            check_growth(folder / file, _claimed_bytes(folder / file), most_unpacked(folder / file))
        split = datasets.concatenate_datasets([datasets.Dataset.from_file(str(folder / file)) for file in files])
        split.data.validate(full=True)
    # A damaged description of the columns makes `datasets` raise any of these.
    except (OSError, pyarrow.ArrowException, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} can't be read as a data set of `datasets` ({reason_of(error)}); {_SAVE}") from error
    return split


def _claimed_bytes(file: Path) -> int:
    """The bytes that pyarrow would allocate for the compressed buffers of an Arrow stream, by their own words."""
    import pyarrow

    claimed = 0
    with pyarrow.memory_map(str(file)) as stream:
        for message in pyarrow.ipc.MessageReader.open_stream(stream):
            if message.type in ("record batch", "dictionary"):
                claimed += sum(_buffer_claims(message.metadata, message.body, message.type == "dictionary"))
    return claimed


def _buffer_claims(metadata: Any, body: Any, dictionary: bool) -> Iterator[int]:
    """The size that each compressed buffer of a message names in its first 8 bytes."""

    def field(table: int, number: int) -> int:
        """The position of what a field of the flatbuffers table at `table` refers to, or 0 if it is not set."""
        (to_slots,) = struct.unpack_from("<i", metadata, table)
        (size,) = struct.unpack_from("<H", metadata, table - to_slots)
        slot = 4 + 2 * number
        (offset,) = struct.unpack_from("<H", metadata, table - to_slots + slot) if slot < size else (0,)
        return table + offset + struct.unpack_from("<I", metadata, table + offset)[0] if offset else 0

    batch = field(struct.unpack_from("<I", metadata)[0], _HEADER)
    if dictionary:
        batch = field(batch, _DATA)
    if not field(batch, _COMPRESSION):
        return
    buffers = field(batch, _BUFFERS)
    for index in range(struct.unpack_from("<I", metadata, buffers)[0]):
        offset, length = struct.unpack_from("<qq", metadata, buffers + 4 + 16 * index)
        # -1 stands before a buffer that would not have become smaller.
        yield max(0, struct.unpack_from("<q", body, offset)[0]) if length else 0


def _plain_names(file: Path, names: Any) -> list[str]:
    """`names` if they are names of entries of a folder. Raises UserError otherwise."""
    listed = names if isinstance(names, list) else []
    plain = [name for name in listed if isinstance(name, str) and Path(name).name == name and name not in ("", "..")]
    if not plain or plain != listed:
        raise UserError(f"{file} has no list of names of splits or data files beside it; {_SAVE}")
    return plain


def hub_table(origin: str, split: Any, columns: list[str]) -> Table:
    """The given columns of a split. Raises UserError if it lacks one."""
    missing = [name for name in columns if name not in split.column_names]
    if missing:
        raise UserError(f"{origin} lacks the columns {shown(missing)}, it has {shown(split.column_names)}")
    cells = [split[name][:] for name in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    # A list's feature is that of its items.
    kinds = {name: getattr(split.features[name], "feature", split.features[name]) for name in columns}
    class_names = {name: kind.names for name, kind in kinds.items() if hasattr(kind, "names")}
    return Table(origin, columns, rows, range(len(split)), "row", class_names)
