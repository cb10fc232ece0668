"""How the changing part of a training run is saved to and restored from a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ... import RunError, UserError
from ...kernels.words import count
from ..config.best import Best, metric_names
from ..model.whole import load_trained_state, trained_state
from ..processes.sharding import whole
from ..runs.checkpoint import Snapshot, check_identity
from ..terminal.text import quoted
from ..tokens.order import Window
from .base import Job
from .build import Training
from .collapse import CollapseWatch
from .optim import load_optimizer_state, optimizer_state
from .state import TrainingState

log = logging.getLogger("isotrain")

# Checkpoint names of state that belongs to one process. After the first process, they are prefixed with its number.
_RNG, _SUMS = "rng.", "sums"


def own_tensors(training: Training) -> dict[str, torch.Tensor]:
    """State of this process alone, on the host: its random generators and the sums over its shares."""
    tensors = {f"{_RNG}{name}": value for name, value in training.job.backend.rng_state().items()}
    tensors[_SUMS] = training.state.sums.detach().cpu()
    return tensors


def snapshot(training: Training, window: Window | None, processes: list[dict[str, torch.Tensor]]) -> Snapshot:
    """Collects everything that the following steps depend on.

    Args:
        window: The window after which training resumes, or None for the stream's position.
        processes: The `own_tensors` of each process, by rank.
    """
    job, state = training.job, training.state
    position = training.stream.state(window)
    tensors = {f"{_owner(rank)}{name}": tensor for rank, own in enumerate(processes) for name, tensor in own.items()}
    return Snapshot(
        model={name: whole(tensor).detach().cpu() for name, tensor in trained_state(training.model).items()},
        optimizer=optimizer_state(training.optimizer, training.model),
        state_tensors=tensors,
        state={
            "stream": position,
            "processes": len(processes),
            "loss_scale": training.scale.state(),
            "samples": state.samples,
            "last_evaluation": state.last_evaluation,
            "evaluated_at": state.evaluated_at,
            "best": state.best,
            "unimproved": state.unimproved,
            "recent": state.recent,
            "counted": state.counted,
            "watch": asdict(state.watch),
            "lr_scheduler": training.schedule.state(),
            "config": training.recorded.model_dump(),
        },
        identity=job.identity(),
        # An evaluation of earlier weights says nothing about these.
        metrics=state.last_evaluation if state.evaluated_at == state.step else {},
        step=state.step,
        epoch=position["epoch"],
    )


def restore(training: Training, saved: Snapshot, folder: Path) -> None:
    """Restores `saved` bit for bit. The optimizer's settings (weight decay, betas...) stay those of the configuration.

    Raises:
        UserError: `saved` belongs to another job, lies beyond the run's last step, or lacks optimizer state that the
            remaining steps need, and was not chosen by `resume_option` best or path.
    """
    check_identity(saved, training.job.identity())
    total_steps = training.total_steps
    if saved.step > total_steps:
        raise UserError(
            f"checkpoint {str(folder)!r} is at step {saved.step}, and this configuration ends at step {total_steps}; "
            "raise num_epochs or max_steps, or resume from an earlier checkpoint"
        )
    if saved.optimizer is None and saved.step < total_steps:
        lack = f"checkpoint {str(folder)!r} has no optimizer state (written with save_optim: false)"
        if training.job.config.resume_option == "last":
            raise UserError(
                f"{lack}, so training can't go on from it exactly; resume_option: best goes on from the best weights "
                "alone"
            )
        log.warning(
            "RESUMED WITH WEIGHTS ALONE: %s; the optimizer starts anew, so this is not the run that would have "
            "followed without a stop",
            lack,
        )
    try:
        _put_back(training, saved)
    except (RunError, UserError):
        raise
    # Checksums and identity are right, so the file was not written by isotrain.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {str(folder)!r} holds a state that isotrain does not write ({quoted(str(error))}); resume "
            "from another one"
        ) from error


def _put_back(training: Training, saved: Snapshot) -> None:
    job, state = training.job, training.state
    load_trained_state(training.model, saved.model)
    if saved.optimizer is not None:
        load_optimizer_state(training.optimizer, training.model, saved.optimizer)
    training.scale.restore(saved.state.get("loss_scale", {}))
    _restore_own(saved, job, state)
    training.stream.restore(saved.state["stream"])
    job.backend.step_boundary()
    state.step = saved.step
    state.samples = int(saved.state["samples"])
    state.last_evaluation = metric_names(saved.state["last_evaluation"], job.config.workload)
    state.evaluated_at = int(saved.state["evaluated_at"])
    state.best = metric_names(saved.state["best"], job.config.workload)
    state.recent, state.counted = tuple(saved.state["recent"]), tuple(saved.state["counted"])
    state.watch = replace(CollapseWatch(**saved.state["watch"]), chance=state.watch.chance, least=state.watch.least)
    # What has not improved, and since when, is known of one metric only.
    before = saved.state["config"]
    same_metric = Best.of(before) == job.config.best
    state.unimproved = saved.state.get("unimproved", 0) if same_metric else 0
    training.schedule.restore(saved.state.get("lr_scheduler", {}), same_metric=same_metric)


def _restore_own(saved: Snapshot, job: Job, state: TrainingState) -> None:
    """Restores this process's generators and sums.

    If there were fewer processes before, the generators of a new one start afresh. If there were more, the first
    process takes over the sums of those that are gone.
    """
    ranks, tensors = job.ranks, saved.state_tensors
    before = saved.state.get("processes", 1)
    if before != ranks.size:
        log.warning(
            "resumed with %s, the checkpoint was written by %d: the same batches, other rounding and dropout",
            count(ranks.size, "process"),
            before,
        )
    if ranks.rank >= before:
        return
    prefix = _owner(ranks.rank) + _RNG
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    job.backend.set_rng_state(own)
    taken = [ranks.rank, *(range(ranks.size, before) if ranks.first else ())]
    state.sums = job.backend.place(
        sum((tensors[_owner(rank) + _SUMS] for rank in taken[1:]), tensors[_owner(ranks.rank) + _SUMS])
    )


def _owner(rank: int) -> str:
    return f"process{rank}." if rank else ""
