"""Finds results in a folder that may also contain training runs, exports, caches and unrelated files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

METRICS, RECORD = "metrics.jsonl", "run.json"
# Folders in a run's folder, which contain no results.
_RUNS_FOLDERS = {"checkpoints", "model", "encoder", "adapter", "tokenizer", "tensorboard", "wandb"}
# A folder with one of these is an export or a trace.
_MARKERS = {"export.json", "trace.json"}
# Files of models, tokenizers, caches and projects, which aren't reported.
_NO_RESULTS = re.compile(
    r"(adapter_|generation_|preprocessor_|processor_|tokenizer_)?config\.json|(isotrain_)?tokenizer\.json|"
    r"special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.json|.*\.index\.json|manifest\.json|"
    r"trainer_state\.json|package(-lock)?\.json|labels\.json|inputs\.json|(nbest_)?predictions.*\.json"
)
_SCHEMA = re.compile(rb'"schema"\s*:\s*\[?\s*"isotrain\.?([\w-]*)')
_RESULTS = ("against", "bench", "conformance", "end-to-end", "parity")
# Results have kilobytes. A larger file is something else and would fill the memory.
LARGEST_FILE = 256 * 2**20
_HEAD = 2**20


@dataclass(frozen=True)
class Files:
    """What was found under a folder, in the order of paths.

    Attributes:
        results: Files with the schema of a result, and their kinds, such as "bench" (cut short in a truncated file).
        runs: The folders of training runs.
        foreign: Unrelated JSON files.
    """

    results: tuple[tuple[Path, str], ...]
    runs: tuple[Path, ...]
    foreign: tuple[Path, ...]


def find_results(folder: Path) -> Files:
    """Searches `folder` at any depth, without hidden folders and isotrain's other folders."""
    results, runs, foreign = [], [], []
    for root, folders, files in os.walk(folder):
        is_run = METRICS in files or {RECORD, "config.yaml"} <= set(files)
        if METRICS in files:
            runs.append(Path(root))
        if _MARKERS & set(files):
            folders.clear()
            continue
        skipped = (".", "export-", "profile-") if is_run else (".",)
        folders[:] = sorted(
            name for name in folders if not name.startswith(skipped) and not (is_run and name in _RUNS_FOLDERS)
        )
        for name in sorted(files):
            path = Path(root) / name
            if name.startswith(".") or not name.endswith(".json") or not path.is_file():
                continue
            kind = _kind(path)
            if kind is not None and any(result.startswith(kind) for result in _RESULTS):
                results.append((path, kind))
            elif kind is None and not is_run and not _NO_RESULTS.fullmatch(name):
                foreign.append(path)
    return Files(tuple(results), tuple(runs), tuple(foreign))


def _kind(path: Path) -> str | None:
    """The kind of an isotrain file by its schema, such as "bench", cut short if the file is; None for other files."""
    try:
        with path.open("rb") as file:
            match = _SCHEMA.search(file.read(LARGEST_FILE if path.stat().st_size <= LARGEST_FILE else _HEAD))
    except OSError:
        # Reading it as a result will say why it can't be read.
        return ""
    return match[1].decode("ascii") if match else None


def foreign_line(foreign: tuple[Path, ...], folder: Path) -> str:
    """One line about all unrelated files, or an empty string if there are none."""
    if not foreign:
        return ""
    first = foreign[0].relative_to(folder)
    if len(foreign) == 1:
        return f"{first} is no result of isotrain, and left out"
    return f"{len(foreign)} JSON files, such as {first}, are no results of isotrain, and left out"
