"""How isotrain was started, for commands in messages that can be pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def program() -> str:
    """The command that starts isotrain in this shell and folder: its name if on the PATH, else the script's path."""
    started = Path(sys.argv[0])
    if started.name != "isotrain":
        return "isotrain" if shutil.which("isotrain") else f"{python()} -m isotrain.cli"
    found = shutil.which("isotrain")
    if found is not None and Path(found).resolve() == started.resolve():
        return "isotrain"
    return _relative(started)


def python() -> str:
    """The running interpreter, as this shell finds it."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):  # noqa: PTH100 (see below)
        return "python"
    return _relative(Path(sys.executable))


def command(*words: str) -> str:
    """The command line `isotrain` with these `words`, ready to paste into a shell."""
    return f"{program()} {shlex.join(words)}"


def predict_command(run: str, example: Sequence[str], *options: str) -> str:
    """The command line that predicts for an example (a text, or a text and its second) with the run in folder `run`."""
    first, *second = example
    # After two dashes, a text that begins with a dash is no option.
    asked = ["--", first] if first.startswith("-") else [first]
    return command("predict", run, *options, *(part for text in second for part in ("--pair", text)), *asked)


def _relative(path: Path) -> str:
    """`path` for a shell, as short as possible from the current folder."""
    absolute = os.path.abspath(path)  # noqa: PTH100 (resolve would leave the environment for the Python it links to)
    relative = os.path.relpath(absolute)
    return shlex.quote(absolute if relative.startswith("..") else relative)
