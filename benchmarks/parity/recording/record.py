"""Records a trace: observes a real training run in the calling process.

The loop, the step (fused, captured or lazy), the schedule and the evaluations are those of `isotrain train`. After each
step, the returned loss and the parameters are read, and the gradient is computed from Adam's first moment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .... import UserError
from ....albert_core.config.load import ResolvedConfig, load_config
from ....albert_core.config.schedule import ADAPTIVE
from ....albert_core.loop.events import TrainingError
from ....albert_core.loop.train import train
from ....albert_core.output.progress import Reporter
from ..trace import Trace
from .head_replay import replay_head
from .module import ModuleRecorder
from .texts import TextRecorder

# Cached features of the candidates are judged by features that are computed where they are used.
_FLOAT64_TEXTS = ("feature_cache=false", "head_dtype=float64")


def record(
    config: str | None,
    label: str,
    sets: Sequence[str],
    *,
    replay_from: Trace | None = None,
    steps: int | None = None,
    reporter: Reporter | None = None,
) -> Trace:
    """Trains `config` with `sets` and returns the run's trace.

    Features come from the cache as in `isotrain train`, but a float64 run on texts computes them at every step, and its
    head in float64, unless `sets` decide. Dropout is off, since its masks differ between dtypes and devices. If the
    loss stops being finite, the trace ends there.

    Args:
        config: A file, a packaged name, a workload, or None for the defaults.
        replay_from: A reference with the same weights. Each layer is also applied to its hidden states, and the head
            is trained once more on its features.
        steps: The most optimizer steps; None makes all of them.

    Raises:
        UserError: The run can't start, or was stopped.
    """
    resolved = load_config(config, sets)
    if resolved.config.lr_scheduler_type in ADAPTIVE:
        raise UserError(
            f"lr_scheduler_type: {resolved.config.lr_scheduler_type} follows each run's own evaluations, and parity "
            "compares steps with the same learning rate; set another schedule"
        )
    if resolved.config.dtype == "float64" and resolved.config.workload is None:
        resolved = load_config(config, [*_FLOAT64_TEXTS, *sets])
    resolved = resolved.with_absolute_paths()
    with for_observing(resolved, steps, "trace") as quiet:
        reporter = reporter or Reporter()
        observe = TextRecorder if resolved.config.workload is None else ModuleRecorder
        recorder = observe(label, replay_from, reporter.phase("step"))
        failure = ""
        try:
            result = train(quiet, observer=recorder, reporter=reporter)
        except TrainingError as error:
            if not recorder.batches:
                raise
            failure = str(error).partition(";")[0]
        else:
            if result.status != "completed":
                raise UserError(f"the run of {label} was stopped at step {result.step}: there is no trace of it")
        trace = recorder.trace(resolved.config, failure)
        if replay_from is not None and "features" in replay_from.arrays:
            trace.arrays.update(replay_head(quiet, replay_from))
    return trace


@contextmanager
def for_observing(resolved: ResolvedConfig, steps: int | None, name: str, **own: Any) -> Iterator[ResolvedConfig]:
    """A configuration of the same training in a folder that is removed afterwards.

    Args:
        resolved: The configuration.
        steps: The most optimizer steps; None makes all of them.
        name: The run's name.
        own: Other keys.
    """
    limits = [number for number in (resolved.config.max_steps, steps) if number is not None]
    with tempfile.TemporaryDirectory(prefix="isotrain-observed-") as folder:
        keys: dict[str, Any] = {
            "max_steps": min(limits, default=None),
            "project_dir": folder,
            "run_name": name,
            "save_strategy": "no",
            "use_wandb": False,
            "use_tensorboard": False,
            "trackers": [],
            "resume_from_checkpoint": False,
            "sync_to_storage": False,
            "load_from_storage": False,
            "stop_on_collapse": False,
            "early_stopping_patience": None,
            "early_stopping_threshold": 0.0,
            "eval_on_start": False,
            "copy_encoder": False,
            "stop_at_step": None,
        }
        yield replace(resolved, config=resolved.config.model_copy(update=keys | own))
