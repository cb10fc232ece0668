"""A command in a process of its own that writes how much memory it took at most.

``python -m isotrain.benchmarks.peak_memory FILE train CONFIG ...`` is ``isotrain train CONFIG ...``; with ``import
MODULE`` in its place it imports that module and nothing else, which is what the other's figure is held against.
"""

from __future__ import annotations

import platform
import resource
import sys
from importlib import import_module
from pathlib import Path


def peak_bytes() -> int:
    """The most resident memory that this program has had so far.

    Linux's own high-water mark (VmHWM) where there is one: getrusage's ru_maxrss also holds what the process that
    started this one had when it did.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    if marks:
        return marks[0]
    # KiB on Linux, bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    file, command, *arguments = sys.argv[1:]
    try:
        if command == "import":
            import_module(arguments[0])
        else:
            run_isotrain([command, *arguments])
    finally:
        Path(file).write_text(str(peak_bytes()), encoding="utf-8")


def run_isotrain(arguments: list[str]) -> None:
    """The console script, found as the system finds it: this floor may not import the command line above it."""
    from importlib.metadata import EntryPoint

    EntryPoint("isotrain", "isotrain.cli.main:main", "console_scripts").load()(arguments)


if __name__ == "__main__":
    main()
