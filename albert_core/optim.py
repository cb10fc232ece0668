"""Optimizers by name and the learning rate as a plain function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..backends import Backend
from .config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig, backend: Backend) -> torch.optim.Optimizer:
    """The optimizer called `config.optim` over `parameters`, every one of them in a single group."""
    group = list(parameters)
    rate, decay = config.learning_rate, config.weight_decay
    betas = (config.adam_beta1, config.adam_beta2)
    match config.optim:
        case "adamw_torch" | "adamw":
            return torch.optim.AdamW(group, rate, betas, config.adam_epsilon, decay, **backend.adam_options())
        case "adam":
            return torch.optim.Adam(group, rate, betas, config.adam_epsilon, decay, **backend.adam_options())
        case "sgd":
            return torch.optim.SGD(group, rate, momentum=config.momentum, weight_decay=decay)
        case "adafactor":
            return torch.optim.Adafactor(group, rate, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(group, rate, momentum=config.momentum, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(group, rate, weight_decay=decay)


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step `step` (counted from 0) of `total_steps`.

    Linear warm-up from 0, reaching the peak at step `warmup`, then constant, or linearly or along half a cosine down
    to 0 at `total_steps`: the schedules of transformers' get_*_schedule_with_warmup.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
