"""A wheel in the hands of users without a compiler: ``make wheel-trial``. Needs nothing but Python's own library.

For each Python, the wheel is installed into a fresh environment, whose programs are the only ones on the PATH. Then
`isotrain doctor` must pass, and a tiny encoder be trained. Sizes are those of the installed files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = "train quickstart --set model_name=random:tiny --set max_steps=5 --set run_name=trial"
STARTS = 10
# torch, what only it brings along, and pip itself.
TORCHS = ("torch", "functorch", "triton", "nvidia", "cuda", "sympy", "networkx", "mpmath", "pip", "setuptools")
SHOWN = 8


class FailedError(Exception):
    """A command that a user would have run failed."""


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FailedError("\n".join([f"{shlex.join(command)}: exit {done.returncode}", *said[-20:]]))
    return done.stdout


def sizes(site: Path) -> dict[str, int]:
    """MB of each package below `site`, the largest first, without metadata."""
    found: dict[str, int] = {}
    for file in site.rglob("*"):
        name = file.relative_to(site).parts[0].partition(".")[0]
        if file.is_file() and not file.is_symlink() and ".dist-info" not in str(file):
            found[name] = found.get(name, 0) + file.stat().st_size
    return {name: size // 1_000_000 for name, size in sorted(found.items(), key=lambda item: -item[1])}


def starts(program: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Median seconds of `program`, and of the CPU time it takes."""
    found = []
    for _ in range(STARTS):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        run(program, folder, environment)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
    return wall, cpu


def trial(python: str, wheel: Path, pip: list[str], folder: Path) -> None:
    """Installs and uses `wheel` in a fresh environment below `folder`, and prints what was found."""
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run([python, "-m", "venv", str(folder / "venv")], folder, alone)
    programs = folder / "venv" / "bin"
    alone |= {"PATH": str(programs), "ISOTRAIN_CACHE": str(folder / "cache")}
    # Here, where the files lie that its options name.
    run([str(programs / "pip"), "install", "--quiet", str(wheel), *pip], Path.cwd(), alone)
    isotrain = str(programs / "isotrain")
    reports = json.loads(run([isotrain, "doctor", "--json"], folder, alone))["backends"]
    report = next(report for report in reports if report["backend"] == "cpu")
    if report["status"] != "PASS" or "native" not in report["kernels"]:
        raise FailedError(f"cpu: {report['status']} {report['reason']}; kernels {', '.join(report['kernels'])}")
    print(run([isotrain, "doctor", "-v"], folder, alone).partition("\ncuda")[0])
    run([isotrain, *shlex.split(TRAIN)], folder, alone)
    wall, cpu = starts([isotrain, "--help"], folder, alone)
    found = sizes(next(programs.parent.glob("lib/python*/site-packages")))
    torchs = sum(size for name, size in found.items() if name.startswith(TORCHS))
    own = {name: size for name, size in found.items() if not name.startswith(TORCHS)}
    largest = ", ".join(f"{name} {size}" for name, size in list(own.items())[:SHOWN])
    print(f"installed: {sum(own.values())} MB ({largest}); torch and its own: {torchs} MB")
    print(f"isotrain --help: {wall:.2f} s, {cpu:.2f} s of CPU (medians of {STARTS})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    parser.add_argument("--pip", default="", help="more arguments of pip install")
    options = parser.parse_args()
    failed = []
    for python in options.pythons:
        print(f"== {python}, {options.wheel.name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="wheel-trial-") as folder:
            try:
                trial(python, options.wheel, shlex.split(options.pip), Path(folder))
            except FailedError as error:
                failed.append(python)
                print(error)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
