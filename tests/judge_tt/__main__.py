"""``python -m judge_tt``: asks the judge, prints each row as it comes, and the verdict.

Exit code 0 where no value of an operation with a known algorithm differs or the judge can't be had here, else 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from isotrain.kernels.tt import native

from .cases import Plan
from .run import Judge, Row
from .table import Table, line, markdown

COMPILER_CAVEAT = (
    "The vendor's kernels are compiled by the compiler in jax-tt-plugin, whose publisher is not known, since the "
    "vendor's own is on no package index. It compiles what runs on the simulator and nothing else."
)


def main() -> int:
    options = _options()
    python = str(Path(options.python).absolute())
    rows: list[Row] = []
    software = ""
    for arch in options.arch or native.ARCHITECTURES:
        software, environment, reason = _vendor(python, arch)
        if native.library().library is None:
            reason = f"the exact unit's extension isn't built ({native.library().reason})"
        if reason:
            print(f"skipped: {reason}")
            return 0
        print(f"judge: {software}, {arch}\n{COMPILER_CAVEAT}")
        plan = Plan(arch, options.seed, options.short)
        cases = [case for case in plan.cases if not options.only or case.operation in options.only]
        for row in Judge(python, environment, options.seconds).rows(cases):
            print(line(row), flush=True)
            rows.append(row)
    table = Table(software, tuple(rows))
    print(table.verdict)
    if options.json:
        table.save(options.json)
    if options.markdown:
        print(markdown(rows))
    return 1 if table.mismatches else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="judge_tt", description="The exact TT emulation against ttnn on a simulator.")
    parser.add_argument("--python", default=sys.executable, help="the Python of the judge's environment")
    parser.add_argument("--arch", nargs="*", choices=native.ARCHITECTURES, help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of one row (default 600)")
    parser.add_argument("--only", nargs="*", help="operations, by their names in the table")
    parser.add_argument("--short", action="store_true", help="a part: a few cases of each operation")
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--markdown", action="store_true", help="print the table for the documents, too")
    return parser.parse_args()


ASK = """
import importlib.metadata as metadata, ttnn
from framework.sim import simulator_dir
print(simulator_dir({arch!r}))
print(*(f"{{name}} {{metadata.version(name)}}" for name in ("ttnn", "wolfpine")), sep=" on ")
"""


def _vendor(python: str, arch: str) -> tuple[str, dict[str, str], str]:
    """The judge's parts in words, its environment, and why it isn't there ("": it is)."""
    if not Path(python).exists():
        return "", {}, f"{python} isn't there: make judge-tt installs the judge where it can"
    asked = subprocess.run([python, "-c", ASK.format(arch=arch)], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or ["no message"]
        return "", {}, f"the judge isn't installed in {python} ({said[-1]}): make judge-tt"
    simulator, software = asked.stdout.strip().splitlines()[-2:]
    variables = {
        "TT_METAL_SIMULATOR": simulator,
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": f"{simulator}/cluster_descriptor.yaml",
        "TT_METAL_SLOW_DISPATCH_MODE": "1",
        "TT_METAL_DISABLE_SFPLOADMACRO": "1",
        "WOLFPINE_PYTHON": python,
    }
    return software, os.environ | variables, ""


if __name__ == "__main__":
    sys.exit(main())
