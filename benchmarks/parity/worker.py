"""Traces in one fresh process: ``python -m isotrain.benchmarks.parity.worker`` with its specification on stdin.

Each job's trace appears whole or not at all. What is refused is written to the specification's result file, and the
exit code is 2; anything else is a traceback on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ... import RunError, UserError
from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_json


def main() -> int:
    """Specification: config, jobs (label, sets, out), replay_from (a trace's folder or null), steps, result."""
    end_with_parent()
    spec: dict[str, Any] = json.load(sys.stdin)
    try:
        run_jobs(spec)
    # RunError: what was refused after the run's first step.
    except (UserError, RunError) as error:
        write_json(Path(spec["result"]), {"error": " ".join(str(error).split())})
        return 2
    return 0


def run_jobs(spec: dict[str, Any]) -> None:
    """Records every job of `spec` in turn. Raises UserError for the first that can't be."""
    from .record import record
    from .trace import read_trace, write_trace

    reference = None if spec["replay_from"] is None else read_trace(Path(spec["replay_from"]))
    for job in spec["jobs"]:
        trace = record(spec["config"], job["label"], job["sets"], replay_from=reference, steps=spec["steps"])
        write_trace(trace, Path(job["out"]))


if __name__ == "__main__":
    sys.exit(main())
