"""Training the small job in this process, on a device whose software has an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.runs.folder import RunFolder
from safetensors.torch import load_file

from .small_job import losses, settings

Run = Callable[..., TrainResult]


def starter(data: Path, folder: Path, backend: str) -> Run:
    """Trains the small job, on `backend` unless the call says otherwise; `resume` is a run to go on with."""

    def start(resume: RunFolder | None = None, **overrides: Any) -> TrainResult:
        return train(load_config(None, settings(data, folder, **({"backend": backend} | overrides))), resume=resume)

    return start


def check_resume(run: Run, **job: Any) -> None:
    """Holds a run that stopped at step 4 and was resumed to the bits of one that didn't stop."""
    job = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "steps_freq": 1} | job
    straight = run(run_name="straight", **job)
    first = run(run_name="cut", stop_at_step=4, **job)
    assert first.status == "stopped"
    again = run(resume=first.run, **job)
    assert losses(again) == losses(straight)
    ours, theirs = (load_file(result.run.model / "model.safetensors") for result in (again, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
