"""What a user calls a workload: a file, a module, or a name that an installed package gives it.

A package adds one by ``[project.entry-points."isotrain.workloads"] tiny = "its.module:TinyGPT"``.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from ... import UserError
from ...kernels.names import check_name
from ..terminal.text import quoted

ENTRY_POINT_GROUP = "isotrain.workloads"
FORMS = "FILE.py:NAME, MODULE:NAME, or the name of an installed workload"

IN_FILE = re.compile(r"(?P<place>.+\.py)(?::(?P<name>\w+))?")
IN_MODULE = re.compile(r"(?P<place>[A-Za-z_][\w.]*):(?P<name>\w+)")


def names_workload(text: str) -> bool:
    """Whether `text` has the form of a workload's file or module, or is the name of an installed workload."""
    # An encoder with random weights is called random:NAME.
    module = IN_MODULE.fullmatch(text) and not text.startswith("random:")
    return bool(IN_FILE.fullmatch(text) or module) or text in installed()


def check_workload_name(spec: str) -> None:
    """Checks what can be checked without importing anything of the user's.

    Raises:
        UserError: There is no such file and no installed workload of this name.
    """
    found = IN_FILE.fullmatch(spec)
    if found is not None and not Path(found["place"]).is_file():
        raise UserError(f"there is no file {quoted(found['place'])}; give a workload as {FORMS}")
    if found is None and not IN_MODULE.fullmatch(spec):
        names = installed()
        if not names:
            raise UserError(f"workload {quoted(spec)} can't be found, and no package installs one; give {FORMS}")
        check_name("workload", spec, names)


def short_name(spec: str) -> str:
    """What tables call a workload: the name behind the colon, else that of its file."""
    return spec.rpartition(":")[2].removesuffix(".py").rpartition("/")[2]


def installed() -> dict[str, EntryPoint]:
    """The workloads of installed packages by name."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def files_of(spec: str) -> list[Path]:
    """The files and folders with the code of a workload: a file and its neighbours, or a package."""
    found = IN_FILE.fullmatch(spec)
    if found is not None:
        return sorted(Path(found["place"]).absolute().parent.glob("*.py"))
    entry = installed().get(spec)
    return package_of((spec if entry is None else entry.value).partition(":")[0])


def package_of(module: str) -> list[Path]:
    """The folders of the package that a module is in, or its file; none if it can't be found."""
    found = find_spec(module.partition(".")[0])
    if found is None:
        return []
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    return folders or ([Path(found.origin)] if found.origin else [])
