"""Runs jobs one after the other in this process, which torchrun started: ``ranks_job.py JOBS.json RESULTS.json``.

A job is ``{"sets": [...], "resume": FOLDER or null}``; what the first process saw of each is written as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.processes.ranks import launched
from isotrain.albert_core.processes.signals import run_program
from isotrain.albert_core.runs.folder import open_run
from torch import distributed


def main() -> NoReturn:
    # One group for all jobs: each training would else make one anew, under the same address.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        resume = open_run(job["resume"]) if job["resume"] else None
        result = train(load_config(None, job["sets"]), resume=resume)
        results.append({"run": str(result.run.path), "status": result.status, "metrics": result.metrics})
    if launched().first:
        Path(sys.argv[2]).write_text(json.dumps(results))
    distributed.destroy_process_group()
    sys.exit(0)


if __name__ == "__main__":
    # As the command ends: a thread that outlives Python's finalisation can abort the process.
    run_program(main, stopped=130)
