"""The moving part of a training run, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .. import UserError
from .batches import BatchStream, Window
from .checkpoint import Snapshot, check_identity
from .job import Job


@dataclass
class TrainingState:
    """Counters and accumulators. What is summed stays on the device until somebody asks for it.

    `zeros` are two float32 zeros on the device that the sums begin with: a compiled step that found nothing there, or
    one tensor twice, would be another program than the rest. `loss_sum` and `right_sum` are over the texts since the
    loss was last taken, `loss_samples` of them. A fused step doesn't say what was right: `right_known` is off then.
    """

    zeros: tuple[torch.Tensor, torch.Tensor]
    step: int = 0
    loss_samples: int = 0
    right_known: bool = True
    last_evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    best: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loss_sum, self.right_sum = self.zeros

    def add_loss(self, mean_loss: torch.Tensor, samples: int, factor: float | torch.Tensor) -> None:
        """Adds an optimizer step's mean loss over `samples` texts; `factor` is that number as the device wants it."""
        self.loss_sum = self.loss_sum + mean_loss.float() * factor
        self.loss_samples += samples

    def add_right(self, right: torch.Tensor) -> None:
        """Adds how many texts of a micro-batch were told right."""
        self.right_sum = self.right_sum + right

    def peek_mean_loss(self) -> float:
        """The mean loss a text since it was last taken; 0.0 when no step was made since."""
        return float(self.loss_sum) / self.loss_samples if self.loss_samples else 0.0

    def take_means(self) -> tuple[float, float | None]:
        """The mean loss and the share of right answers (None where that isn't known), and starts anew."""
        share = float(self.right_sum) / max(1, self.loss_samples) if self.right_known else None
        means = self.peek_mean_loss(), share
        self.loss_sum, self.right_sum = self.zeros
        self.loss_samples = 0
        return means

    def record_evaluation(self, metrics: dict[str, float], metric: str, mode: str) -> None:
        """Remembers the newest evaluation, and the best one by `metric`."""
        self.last_evaluation, self.evaluated_at = dict(metrics), self.step
        sign = 1.0 if mode == "max" else -1.0
        if not self.best or sign * metrics[metric] > sign * self.best[metric]:
            self.best = {**metrics, "step": float(self.step)}


def snapshot(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: BatchStream,
    window: Window,
    state: TrainingState,
) -> Snapshot:
    """Everything that the steps after `window` depend on."""
    position = stream.state(window)
    tensors = {f"rng.{name}": value for name, value in job.backend.rng_state().items()}
    tensors["loss_sum"], tensors["right_sum"] = state.loss_sum.cpu(), state.right_sum.cpu()
    return Snapshot(
        model={name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        optimizer=optimizer.state_dict(),
        state_tensors=tensors,
        state={
            "stream": position,
            "loss_samples": state.loss_samples,
            "last_evaluation": state.last_evaluation,
            "evaluated_at": state.evaluated_at,
            "best": state.best,
            "lr_scheduler": {"type": job.config.lr_scheduler_type, "step": state.step},
            "config": job.config.model_dump(),
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
            "on from it exactly; resume the newest one (resume_option: last), or train with save_optim: true"
        )
    model.load_state_dict(saved.model, strict=True)
    if saved.optimizer is not None:
        settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(saved.optimizer)
        for group, configured in zip(optimizer.param_groups, settings, strict=True):
            group.update(configured)
    prefix = "rng."
    job.backend.set_rng_state(
        {name.removeprefix(prefix): value for name, value in saved.state_tensors.items() if name.startswith(prefix)}
    )
    stream.restore(saved.state["stream"])
    job.backend.step_boundary()
    state.step = saved.step
    state.loss_sum, state.right_sum = (
        job.backend.place(saved.state_tensors[name]) for name in ("loss_sum", "right_sum")
    )
    state.loss_samples = int(saved.state["loss_samples"])
    state.last_evaluation = dict(saved.state["last_evaluation"])
    state.evaluated_at = int(saved.state["evaluated_at"])
    state.best = dict(saved.state["best"])
