"""Runs a command and writes its peak memory to a file.

``python -m isotrain.benchmarks.end_to_end.peak_memory FILE train CONFIG ...`` runs ``isotrain train CONFIG ...``. With
``import MODULE`` instead, it only imports that module, for comparison.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_text
from ...backends.host.memory import process_memory


def main() -> None:
    end_with_parent()
    file, command, *arguments = sys.argv[1:]
    try:
        if command == "import":
            import_module(arguments[0])
        else:
            run_isotrain([command, *arguments])
    finally:
        write_text(Path(file), str(process_memory().peak_bytes))


def run_isotrain(arguments: list[str]) -> None:
    """Runs the console script by its entry point, since this floor may not import the command line above it."""
    from importlib.metadata import EntryPoint

    EntryPoint("isotrain", "isotrain.cli.main:main", "console_scripts").load()(arguments)


if __name__ == "__main__":
    main()
