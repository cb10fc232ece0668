"""Starts the check from its bundle: python3 run.py [--seconds N] [--out DIR] ...

Needs Python with torch, triton and transformers; the bundle has the rest. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path


def main() -> None:
    here = Path(__file__).resolve().parent
    there = {_normal(found.metadata["Name"] or "") for found in distributions()}
    site = here / "site"
    for wheel in sorted((here / "wheels").glob("*.whl")):
        # What the machine has stays what is used.
        if _normal(wheel.name.partition("-")[0]) not in there:
            zipfile.ZipFile(wheel).extractall(site)
    paths = [str(here / "program"), str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    reference = ["--reference", str(here / "reference")]
    os.execv(sys.executable, [sys.executable, "-m", "isotrain.cli", "gpu-check", *reference, *sys.argv[1:]])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
