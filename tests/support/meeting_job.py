"""Meets the others and adds up a number with them, under torchrun: ``meeting_job.py FOLDER``.

In the first attempt process 1 dies once all have met; in the next one process 0 comes late, so that the other could
read what the dead ones left.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
from isotrain.albert_core.processes.meeting import meet
from isotrain.albert_core.processes.signals import run_program
from torch import distributed


def main() -> NoReturn:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    folder = Path(sys.argv[1])
    again = (folder / "died").exists()
    if again and rank == 0:
        time.sleep(1.5)
    limit = 30
    distributed.init_process_group(
        "gloo", store=meet(rank, size, limit), rank=rank, world_size=size, timeout=timedelta(seconds=limit)
    )
    total = torch.ones(1)
    distributed.all_reduce(total)
    if not again and rank == 1:
        (folder / "died").touch()
        os._exit(7)
    distributed.barrier()
    (folder / f"total-{rank}").write_text(str(int(total.item())))
    distributed.destroy_process_group()
    sys.exit(0)


if __name__ == "__main__":
    # As the command ends: a thread that outlives Python's finalisation can abort the process.
    run_program(main, stopped=130)
