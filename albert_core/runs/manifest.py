"""RUN/manifest.json: size and SHA-256 of all files that a prediction, an export or a resume reads from a run.

It is written when the run is set up, and again with the final model. A resume changes some of the files. Their entries
are removed first and added again afterwards. After a kill in between, the run can be resumed but doesn't predict. A
manifest reveals accidents and mixed-up files. It is no signature: anyone who can write the files can write it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ... import UserError, __version__
from ..config.parsing import parse_json, read_text
from ..terminal.invocation import command
from .files import check_file, checksums, json_digest, write_json

MANIFEST = "manifest.json"
FORMAT = "isotrain-run-1"

CONFIG, ORIGIN, MODEL = "config.yaml", "run.json", "model/model.safetensors"
# Files that a resume writes again.
CHANGING = (CONFIG, ORIGIN, MODEL)
_SMALL = (CONFIG, ORIGIN, "labels.json", "inputs.json", "responses.json")
_FOLDERS = ("tokenizer", "encoder")


def vouch(run: Path, names: Iterable[str] | None = None) -> None:
    """Adds the files `names`, or all files, as they are now (if they exist) to the manifest.

    Raises the errors of `files.write_json`.
    """
    chosen = [name for name in (_present(run) if names is None else names) if (run / name).is_file()]
    known = {} if names is None else _read(run)
    _write(run, known | checksums(run, chosen))


def withdraw(run: Path, names: Iterable[str]) -> None:
    """Removes `names` from the manifest before they are changed. Raises the errors of `files.write_json`."""
    described = _read(run) if has_manifest(run) else {}
    kept = {name: entry for name, entry in described.items() if name not in names}
    if kept != described:
        _write(run, kept)


def check_run(run: Path, required: Iterable[str] = (), *, encoder: bool = True) -> None:
    """Compares a run's files with its manifest.

    Args:
        run: The run's folder.
        required: Files that the manifest must name, or the run is not finished.
        encoder: Whether to check the copied encoder.

    Raises:
        UserError: There is no manifest, it lacks a file, a file is missing or has other bytes, or there is an unknown
            one in the tokenizer's or the encoder's folder. The message names the file.
    """
    described = _read(run)
    for name in required:
        if name not in described:
            raise UserError(
                f"{run / MANIFEST} does not vouch for {name}: the run was interrupted while it wrote it; continue "
                f"it by {_resume(run)}"
            )
    for name, entry in described.items():
        if encoder or not name.startswith("encoder/"):
            check_file(run / name, entry, _advice(run, name))
    for name in _present(run):
        if name not in described and name.partition("/")[0] in _FOLDERS and (encoder or "encoder/" not in name):
            raise UserError(f"{run / name} was not written by this run; remove it")


def has_manifest(run: Path) -> bool:
    """Whether the run has a manifest. A run killed before its first step may have none."""
    return (run / MANIFEST).is_file()


def _advice(run: Path, name: str) -> str:
    if name == CONFIG:
        return (
            f"put it back, and change values by --set KEY=VALUE after {_resume(run)}, or for a prediction by "
            "--model and --backend"
        )
    return "copy the whole run folder again"


def _resume(run: Path) -> str:
    return f"`{command('train', '--resume', str(run))}`"


def _present(run: Path) -> Iterator[str]:
    """The names of the run's files that a manifest covers."""
    for name in (*_SMALL, MODEL):
        if (run / name).is_file():
            yield name
    for folder in _FOLDERS:
        for path in sorted((run / folder).rglob("*")):
            if not path.is_dir() and not path.name.startswith(".tmp-"):
                yield path.relative_to(run).as_posix()


def _read(run: Path) -> dict[str, Any]:
    path = run / MANIFEST
    fix = "copy the whole run folder again"
    if not path.is_file():
        raise UserError(
            f"{run} has no {MANIFEST}, by which its files are checked; {fix}, or let {_resume(run)} write it"
        )
    manifest = parse_json(read_text(path, fix), path, fix, halves=True)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of a run that this isotrain reads; {fix}")
    files = manifest.get("files")
    if not isinstance(files, dict) or manifest.get("files_sha256") != json_digest(files):
        raise UserError(f"{path} is damaged: its SHA-256 is another one than when it was written; {fix}")
    strange = [name for name in files if name not in (*_SMALL, MODEL) and not _lies_in_a_folder(name)]
    if strange:
        raise UserError(f"{path} names files that no run has; {fix}")
    return files


def _lies_in_a_folder(name: str) -> bool:
    folder, *rest = name.split("/")
    return folder in _FOLDERS and bool(rest) and not {"", ".", ".."} & {*rest}


def _write(run: Path, files: dict[str, Any]) -> None:
    described = dict(sorted(files.items()))
    write_json(
        run / MANIFEST,
        {"format": FORMAT, "isotrain": __version__, "files": described, "files_sha256": json_digest(described)},
    )
