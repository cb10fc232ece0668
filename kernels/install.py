"""Commands in messages that install what is missing. Each can be pasted as it is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path


def install_hint(extra: str, pip: str | None = None) -> str:
    """The command that installs the packages of `extra`, depending on how isotrain was installed.

    Args:
        extra: One of the distribution's extras, such as "onnx".
        pip: The program to install with. By default the running interpreter's.

    Returns:
        In a checkout ``pip install -e '.[onnx]'``, with its path if that is not the current folder. Otherwise the names
        of the extra's packages, because isotrain itself is on no package index.
    """
    program = pip or _pip()
    checkout = checkout_folder()
    if checkout is not None:
        return f"{program} install -e {shlex.quote(f'{_from_here(checkout)}[{extra}]')}"
    return f"{program} install {shlex.join(extra_packages(extra))}"


def rebuild_hint() -> str:
    """How to rebuild this installation's native libraries, for the end of a message."""
    checkout = checkout_folder()
    if checkout is None:
        return "install isotrain again, built on this machine"
    return f"`{_pip()} install -e {shlex.quote(_from_here(checkout))}`"


def checkout_folder() -> Path | None:
    """The source tree that isotrain runs from, or None for an installed wheel."""
    # The root of the checkout is the package itself.
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() else None


def extra_packages(extra: str) -> list[str]:
    """The requirements of `extra` in the installed distribution's metadata."""
    marker = re.compile(rf"""\bextra\s*==\s*["']{re.escape(extra)}["']""")
    required = (text.partition(";") for text in metadata.requires("isotrain") or ())
    return [requirement.strip() for requirement, _, condition in required if marker.search(condition)]


def pip_install(*packages: str) -> str:
    """The command that installs `packages` for the running isotrain."""
    return f"{_pip()} install {shlex.join(packages)}"


def _pip() -> str:
    """pip as a shell finds it if that is the running interpreter's, else its path."""
    own = Path(sys.prefix) / "bin" / "pip"
    found = shutil.which("pip")
    if not own.is_file() or (found is not None and Path(found).absolute() == own.absolute()):
        return "pip"
    return shlex.quote(_from_here(own))


def _from_here(path: Path) -> str:
    """`path` as a command in the current folder names it: relative below that folder, else absolute."""
    try:
        below = path.is_relative_to(Path.cwd())
        return os.path.relpath(path) if below else str(path)
    except FileNotFoundError:
        return str(path)
