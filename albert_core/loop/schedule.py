"""The learning rate of every step, by transformers' own schedules."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from ... import UserError
from ...backends import Backend
from ..config.schedule import ADAPTIVE
from ..config.schema import TrainConfig

# What a schedule that follows the evaluations remembers. The rest of its state is configuration.
_REMEMBERED = (
    *("best", "num_bad_epochs", "num_good_epochs", "cooldown_counter", "warmup_counter", "reset_start"),
    *("last_epoch", "_streaming_avg"),
)


class Schedule:
    """The learning rate of a run, a plain function of the step.

    Only `reduce_lr_on_plateau` and `greedy` follow the evaluations instead, and have a state.
    """

    def __init__(self, config: TrainConfig, total_steps: int) -> None:
        """Raises UserError if the installed transformers is too old to have the schedule."""
        from transformers import get_scheduler

        self._peak = config.learning_rate
        self._name = name = config.lr_scheduler_type
        # The schedules change an optimizer. Ours is changed by the backend, so they get one of their own.
        self._optimizer = torch.optim.SGD([torch.zeros(1)], self._peak)
        options = config.lr_scheduler_kwargs.model_dump()
        if name in ADAPTIVE:
            options = {"mode": config.best.mode, **options}
        try:
            self._scheduler: Any = get_scheduler(
                # transformers' "constant" ignores the warm-up.
                "constant_with_warmup" if name == "constant" else name,
                self._optimizer,
                config.warmup_steps or math.ceil(config.warmup_ratio * total_steps),
                None if "num_stable_steps" in options else total_steps,
                options,
            )
        except ValueError as error:
            raise UserError(f"lr_scheduler_type {name} can't be used ({error}); update transformers") from error

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        if self._name in ADAPTIVE:
            return float(self._optimizer.param_groups[0]["lr"])
        return self._peak * float(self._scheduler.lr_lambdas[0](step))

    def set(self, step: int, optimizer: torch.optim.Optimizer, backend: Backend) -> float:
        """Sets the learning rate of optimizer step `step`, counted from 0, and returns it."""
        rate = self.at(step)
        backend.set_learning_rate(optimizer, rate)
        return rate

    def follow(self, metric: float) -> None:
        """Takes an evaluation's `checkpoint_metric` into account, if the schedule follows the evaluations."""
        if self._name in ADAPTIVE:
            self._scheduler.step(metric)

    def state(self) -> dict[str, Any]:
        """What it remembers, as plain values for a checkpoint. Empty for a function of the step."""
        if self._name not in ADAPTIVE:
            return {}
        state = self._scheduler.state_dict()
        remembered = {name: state[name] for name in _REMEMBERED if name in state}
        return {"type": self._name, "peak": self._peak, "rate": self.at(0), "remembered": remembered}

    def restore(self, state: dict[str, Any], *, same_metric: bool) -> None:
        """Restores what `state` returned, if it was another schedule's not at all.

        A changed learning rate is reduced as far as the earlier one was. With another metric, only that is kept.
        """
        if self._name not in ADAPTIVE or state.get("type") != self._name:
            return
        same_peak = state["peak"] == self._peak
        rate = state["rate"] if same_peak else self._peak * (state["rate"] / state["peak"])
        remembered = state["remembered"] if same_metric else {}
        self._scheduler.load_state_dict({**self._scheduler.state_dict(), **remembered, "_last_lr": [rate]})
        self._optimizer.param_groups[0]["lr"] = rate


class OwnSchedule:
    """The learning rates of a user's optimizer, by the user's own schedule if there is one.

    The schedule changes a copy of the optimizer on the host. As a plain function of the step, it has no state: a resume
    makes its steps again.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
    ) -> None:
        """`make` builds the schedule for the optimizer that it changes. Without it, the rates stay as they are."""
        self._original, self._make = optimizer, make
        self._groups = [
            {name: value for name, value in group.items() if name != "params"} | {"lr": float(group["lr"])}
            for group in optimizer.param_groups
        ]
        self._begin()

    def _begin(self) -> None:
        self._copied, self._done = copy.copy(self._original), 0
        self._copied.state = defaultdict(dict)
        self._copied.param_groups = [{**group, "params": [torch.zeros(1)]} for group in self._groups]
        self._scheduler = None if self._make is None else self._make(self._copied)

    def set(self, step: int, optimizer: torch.optim.Optimizer, backend: Backend) -> float:
        """As `Schedule.set`, for each group of parameters. Momentum and betas follow the schedule, too."""
        if step < self._done:
            self._begin()
        while self._scheduler is not None and self._done < step:
            with warnings.catch_warnings():
                # The copy makes no steps of its own.
                warnings.simplefilter("ignore", UserWarning)
                self._scheduler.step()
            self._done += 1
        rates = [float(group["lr"]) for group in self._copied.param_groups]
        backend.set_learning_rate(optimizer, *rates)
        for group, copied in zip(optimizer.param_groups, self._copied.param_groups, strict=True):
            group.update({name: copied[name] for name in ("momentum", "betas") if name in copied})
        return rates[0]

    def follow(self, metric: float) -> None:
        """It doesn't follow the evaluations."""

    def state(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def restore(self, state: dict[str, Any], *, same_metric: bool) -> None:
        """It has no state."""
