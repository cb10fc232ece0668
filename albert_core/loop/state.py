"""The changing part of a training run, and how it is saved to and restored from a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from ... import RunError, UserError
from ...kernels.words import count
from ..config.best import Best
from ..config.schema import TrainConfig
from ..model.whole import load_trained_state, trained_state
from ..processes.ranks import ALONE, Ranks
from ..runs.checkpoint import Snapshot, check_identity
from ..terminal.text import quoted
from ..tokens.order import BatchStream, Window
from .collapse import CollapseWatch
from .job import Job
from .loss_scale import LossScale
from .optim import load_optimizer_state, optimizer_state

log = logging.getLogger("isotrain")

# Checkpoint names of state that belongs to one process. After the first process, they are prefixed with its number.
_RNG, _SUMS = "rng.", "sums"


@dataclass
class TrainingState:
    """Counters and accumulators.

    Attributes:
        zeros: Zeros, float32 [2], that `sums` starts with. A compiled step without them would be another program.
        sums: Summed loss and number of correct answers of `samples` samples since the last log line, float32 [2]. They
            stay on the device until they are needed.
        recent: Summed loss and number of samples since the last evaluation.
        counted: The part of `sums` and `samples` that `recent` already contains.
        gradient_norm: The norm of the newest step's gradient, on the device, if known.
    """

    zeros: torch.Tensor
    step: int = 0
    samples: int = 0
    last_evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    best: dict[str, float] = field(default_factory=dict)
    recent: tuple[float, int] = (0.0, 0)
    counted: tuple[float, int] = (0.0, 0)
    gradient_norm: torch.Tensor | None = None
    watch: CollapseWatch = field(default_factory=CollapseWatch)

    def __post_init__(self) -> None:
        self.sums = self.zeros

    def add(self, sums: torch.Tensor, samples: int) -> None:
        """Adds the result of an optimizer step over `samples` samples: summed loss and number of correct answers."""
        self.sums = self.sums + sums
        self.samples += samples

    def peek_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """Mean loss per sample and share of correct answers since `take_means`, over all processes. Zeros without a
        step.

        `samples` counts the samples of all processes, while `sums` covers this process's shares.
        """
        if not self.samples:
            return 0.0, 0.0
        loss, right = ranks.total(self.sums).tolist()
        return loss / self.samples, right / self.samples

    def take_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """Like `peek_means`, and starts over."""
        means = self.peek_means(ranks)
        self._count(means[0])
        self.sums, self.samples, self.counted = self.zeros, 0, (0.0, 0)
        return means

    def take_recent_loss(self, ranks: Ranks = ALONE) -> float:
        """Mean training loss per sample since the last call, in nats. Log lines in between don't affect it."""
        self._count(self.peek_means(ranks)[0])
        total, samples = self.recent
        self.recent = (0.0, 0)
        return total / max(1, samples)

    def _count(self, mean: float) -> None:
        total = mean * self.samples
        self.recent = (self.recent[0] + total - self.counted[0], self.recent[1] + self.samples - self.counted[1])
        self.counted = (total, self.samples)

    def record_evaluation(self, metrics: dict[str, float], best: Best) -> None:
        """Stores the newest evaluation and, ranked by `best`, the best one. The first of equals stays."""
        self.last_evaluation, self.evaluated_at = dict(metrics), self.step
        evaluated = {**metrics, "step": float(self.step)}
        self.best = best.first([self.best, evaluated] if self.best else [evaluated])


def own_tensors(job: Job, state: TrainingState) -> dict[str, torch.Tensor]:
    """State of this process alone, on the host: its random generators and the sums over its shares."""
    tensors = {f"{_RNG}{name}": value for name, value in job.backend.rng_state().items()}
    tensors[_SUMS] = state.sums.detach().cpu()
    return tensors


def snapshot(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scale: LossScale,
    stream: BatchStream,
    window: Window | None,
    state: TrainingState,
    processes: list[dict[str, torch.Tensor]],
    recorded: TrainConfig,
) -> Snapshot:
    """Collects everything that the following steps depend on.

    Args:
        window: The window after which training resumes, or None for the stream's position.
        processes: The `own_tensors` of each process, by rank.
        recorded: The configuration as the run's folder keeps it.
    """
    position = stream.state(window)
    tensors = {f"{_owner(rank)}{name}": tensor for rank, own in enumerate(processes) for name, tensor in own.items()}
    return Snapshot(
        model={name: tensor.detach().cpu() for name, tensor in trained_state(model).items()},
        optimizer=optimizer_state(optimizer, model),
        state_tensors=tensors,
        state={
            "stream": position,
            "processes": len(processes),
            "loss_scale": scale.state(),
            "samples": state.samples,
            "last_evaluation": state.last_evaluation,
            "evaluated_at": state.evaluated_at,
            "best": state.best,
            "recent": state.recent,
            "counted": state.counted,
            "watch": asdict(state.watch),
            "lr_scheduler": {"type": job.config.lr_scheduler_type, "step": state.step},
            "config": recorded.model_dump(),
        },
        identity=job.identity(),
        # An evaluation of earlier weights says nothing about these.
        metrics=state.last_evaluation if state.evaluated_at == state.step else {},
        step=state.step,
        epoch=position["epoch"],
    )


def restore(
    saved: Snapshot,
    folder: Path,
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scale: LossScale,
    stream: BatchStream,
    state: TrainingState,
    total_steps: int,
) -> None:
    """Restores `saved` bit for bit. The optimizer's settings (weight decay, betas...) stay those of the configuration.

    Raises:
        UserError: `saved` belongs to another job, lies beyond `total_steps`, or lacks optimizer state that the
            remaining steps need.
    """
    check_identity(saved, job.identity())
    if saved.step > total_steps:
        raise UserError(
            f"checkpoint {str(folder)!r} is at step {saved.step}, and this configuration ends at step {total_steps}; "
            "raise num_epochs or max_steps, or resume from an earlier checkpoint"
        )
    if saved.optimizer is None and saved.step < total_steps:
        raise UserError(
            f"checkpoint {str(folder)!r} has no optimizer state (written with save_optim: false), so training can't go "
            "on from it exactly; the newest one of an unfinished run has it (resume_option: last), and that of a "
            "complete run only where it was trained with save_optim: true"
        )
    try:
        _put_back(saved, job, model, optimizer, scale, stream, state)
    except (RunError, UserError):
        raise
    # Checksums and identity are right, so the file was not written by isotrain.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {str(folder)!r} holds a state that isotrain does not write ({quoted(str(error))}); resume "
            "from another one"
        ) from error


def _put_back(
    saved: Snapshot,
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scale: LossScale,
    stream: BatchStream,
    state: TrainingState,
) -> None:
    load_trained_state(model, saved.model)
    if saved.optimizer is not None:
        load_optimizer_state(optimizer, model, saved.optimizer)
    scale.restore(saved.state.get("loss_scale", {}))
    _restore_own(saved, job, state)
    stream.restore(saved.state["stream"])
    job.backend.step_boundary()
    state.step = saved.step
    state.samples = int(saved.state["samples"])
    state.last_evaluation = dict(saved.state["last_evaluation"])
    state.evaluated_at = int(saved.state["evaluated_at"])
    state.best = dict(saved.state["best"])
    state.recent, state.counted = tuple(saved.state["recent"]), tuple(saved.state["counted"])
    state.watch = CollapseWatch(**saved.state["watch"])


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
