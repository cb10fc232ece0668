"""The moving part of a training run, and its way into a checkpoint and back."""

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

# Names in a checkpoint of what one process alone knows; those of the processes after the first have its number before.
_RNG, _SUMS = "rng.", "sums"


@dataclass
class TrainingState:
    """Counters and accumulators.

    `sums` (float32 [2]) are the loss and the right answers of `samples` texts since the last log line; they stay on the
    device until somebody asks for them. They begin with `zeros`, which are there too: a compiled step that found none
    to add to would be another program than the rest. `recent` is the loss summed, and the texts, since the last
    evaluation; `counted` is how much of `sums` and `samples` it holds already. `gradient_norm` is that of the newest
    step, on the device, where it is known.
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
        """Adds what an optimizer step over `samples` texts returned: their summed loss and number of right answers."""
        self.sums = self.sums + sums
        self.samples += samples

    def peek_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """Mean loss a text and share of right answers since they were last taken; zeros when no step was made since.

        Of all processes' texts: `samples` counts them all, `sums` those of this process's shares.
        """
        if not self.samples:
            return 0.0, 0.0
        loss, right = ranks.total(self.sums).tolist()
        return loss / self.samples, right / self.samples

    def take_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """The same, and starts anew."""
        means = self.peek_means(ranks)
        self._count(means[0])
        self.sums, self.samples, self.counted = self.zeros, 0, (0.0, 0)
        return means

    def take_recent_loss(self, ranks: Ranks = ALONE) -> float:
        """Mean training loss a text since the last call, in nats; log lines in between change nothing."""
        self._count(self.peek_means(ranks)[0])
        total, samples = self.recent
        self.recent = (0.0, 0)
        return total / max(1, samples)

    def _count(self, mean: float) -> None:
        total = mean * self.samples
        self.recent = (self.recent[0] + total - self.counted[0], self.recent[1] + self.samples - self.counted[1])
        self.counted = (total, self.samples)

    def record_evaluation(self, metrics: dict[str, float], best: Best) -> None:
        """Remembers the newest evaluation, and the first one as `best` ranks them."""
        self.last_evaluation, self.evaluated_at = dict(metrics), self.step
        evaluated = {**metrics, "step": float(self.step)}
        self.best = best.first([self.best, evaluated] if self.best else [evaluated])


def own_tensors(job: Job, state: TrainingState) -> dict[str, torch.Tensor]:
    """What one process alone knows, on the host: its generators, and the sums over its shares."""
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
    """Everything that the steps after `window` depend on, or after the stream's position where that is None.

    `processes` holds each one's `own_tensors`, by rank; `recorded` is the configuration as the run's folder has it.
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
    """Puts `saved` back, bit for bit; the optimizer's settings (weight decay, betas...) are the configuration's.

    Raises UserError when it belongs to another job, lies beyond `total_steps`, or lacks optimizer state that the steps
    left would need.
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
    # Its checksums are right and its identity is this job's, so that somebody else than isotrain wrote it.
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
    """Generators and sums of this process. Where there were fewer processes, those of a new one begin anew; where there
    were more, the first takes over the sums of those that are gone.
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
