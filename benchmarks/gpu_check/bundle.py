"""The folder for a machine with a GPU and without a network: everything that the check needs and is not there."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ... import UserError
from ...albert_core.runs.files import check_place, make_folders, published, write_bytes
from ...kernels.words import count
from ..against.checkout import FOLDERS, RESULTS, SUFFIXES
from ..harness.environment import PACKAGE_ROOT
from ..harness.runner import last_words, run_process
from . import launch
from .stages import PROCESS, parity_arguments

# What the check needs beside torch, triton, transformers and what these need. Each brings its own requirements.
CARRIED = ("pydantic>=2.7", "typer>=0.15", "rich>=13.7")
# What processes read. Native libraries are built for one version of Python, and serve the CPU.
KEPT = {*SUFFIXES, ".css", ".j2"} - {".cpp", ".h"}
# Downloads are small. The reference trains in float64, and so do the three draws of each of its error budgets.
DOWNLOAD_SECONDS, REFERENCE_SECONDS = 300.0, 3600.0


def make_bundle(folder: Path, python: str | None, tiny: bool, tell: Callable[[str], object]) -> None:
    """Writes the bundle.

    Args:
        python: The version of Python on the other machine; None: this one's.
        tiny: With the reference of a dry run.
        tell: Called with lines for the user.

    Raises:
        UserError: The folder exists, or a part of the bundle can't be made.
    """
    version = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    if not re.fullmatch(r"3\.\d+", version):
        raise UserError(f"--python {version!r} is no version of Python; write it as 3.12")
    if folder.exists():
        raise UserError(f"--bundle {str(folder)!r} exists; give a new folder")
    check_place(folder, "--bundle")
    make_folders(folder.parent, "--bundle")
    with published(folder) as making:
        tell("wheels")
        _download(making / "wheels", version)
        tell("float64 reference")
        arguments = (*parity_arguments(tiny), "--dtype", "float64", "--out", str(making / "reference"))
        _run((*PROCESS, "parity", "record", *arguments), making, REFERENCE_SECONDS, "recording the float64 reference")
        for name in FOLDERS:
            shutil.copytree(PACKAGE_ROOT / name, making / "program" / "isotrain" / name, ignore=_unneeded)
        write_bytes(making / "program" / "isotrain" / "__init__.py", (PACKAGE_ROOT / "__init__.py").read_bytes())
        write_bytes(making / "run.py", Path(launch.__file__).read_bytes())
    tell(f"{count(sum(path.is_file() for path in folder.rglob('*')), 'file')} in {folder}")


def _download(wheels: Path, version: str) -> None:
    """The wheels of CARRIED and what they require, from the index that pip is set to."""
    target = ("--python-version", version, "--platform", f"manylinux2014_{platform.machine()}")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    command = (*pip, "--only-binary=:all:", *target, "--dest", str(wheels), *CARRIED)
    _run(command, wheels.parent, DOWNLOAD_SECONDS, f"downloading {', '.join(CARRIED)} for Python {version}")


def _run(command: tuple[str, ...], folder: Path, limit: float, what: str) -> None:
    log = folder / "log.txt"
    ended = run_process(command, None, log, None, limit)
    if ended.code or ended.timed_out:
        raise UserError(f"--bundle: {what} failed{last_words(log)}; mend it, and start again")
    log.unlink()


def _unneeded(folder: str, names: list[str]) -> set[str]:
    """The files that no process reads, for `shutil.copytree`."""
    inside = Path(folder).relative_to(PACKAGE_ROOT).parts
    here = {name for name in names if (Path(folder) / name).is_dir()}
    return {
        name
        for name in names
        if name == "__pycache__" or (*inside, name) == RESULTS or not (name in here or Path(name).suffix in KEPT)
    }
