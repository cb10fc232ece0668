"""Faults planted behind the encoder: in the features handed over, the head, the loss, the optimizer, the evaluation.

Each must be caught in float32 and beside a bfloat16 encoder, whose rounding is no excuse for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from isotrain.albert_core.loop import build as training
from isotrain.albert_core.loop import start
from isotrain.albert_core.loop.schedule import Schedule
from isotrain.albert_core.model import head
from isotrain.albert_core.tasks.classification import Classification
from isotrain.albert_core.tasks.task import Evaluation
from torch.nn import functional

from .faults import B16, F32, Fault, Plant, _after_step

# Of sizes that rounding may hide, nothing is asked.
NONE = float("inf")


def _made(change: Callable[[Any, Any, float], Any]) -> Plant:
    """`change(training, make, size)` makes the step in the place of `make(training)`."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = start.make_step
        patch.setattr(start, "make_step", lambda training: change(training, real, size))

    return plant


def _groups(change: Callable[[dict[str, Any], float], None]) -> Plant:
    """The optimizer's settings are others."""

    def changed(training: Any, make: Any, size: float) -> Any:
        for group in training.optimizer.param_groups:
            change(group, size)
        return make(training)

    return _made(changed)


def _beta2(group: dict[str, Any], size: float) -> None:
    group["betas"] = (group["betas"][0], size)


def _epsilon(group: dict[str, Any], size: float) -> None:
    group["eps"] = size


def _loss(other: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> Plant:
    """The step differentiates another loss of its logits."""

    def changed(training: Any, make: Any, size: float) -> Any:
        model = training.model

        def loss(inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = model(inputs)
            return other(logits, labels, size), (logits.detach().argmax(dim=-1) == labels).sum()

        training.loss = loss
        return make(training)

    return _made(changed)


def _smoothed(logits: torch.Tensor, labels: torch.Tensor, size: float) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=size)


def _weighted(logits: torch.Tensor, labels: torch.Tensor, size: float) -> torch.Tensor:
    """One label counts more, or less, than the others."""
    weights = torch.ones(logits.shape[-1], dtype=logits.dtype)
    weights[0] += size
    return functional.cross_entropy(logits, labels, weights, reduction="sum")


def _coupled(training: Any, make: Any, size: float) -> Any:
    """The decay is added to the gradient, as Adam has it, in the place of AdamW's."""
    (group,) = training.optimizer.param_groups
    decay, group["weight_decay"] = group["weight_decay"], 0.0

    def add(*_: Any) -> None:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=decay)

    training.optimizer.register_step_pre_hook(add)
    return make(training)


def _biases(training: Any, size: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(one, one.detach().clone()) for name, one in training.model.named_parameters() if name.endswith("bias")]


def _undecayed(training: Any, memory: dict[str, Any], size: float) -> None:
    (group,) = training.optimizer.param_groups
    for bias, before in memory["before"]:
        if training.optimizer.state[bias]:
            bias.add_(before, alpha=float(group["lr"]) * group["weight_decay"])


def _old_moments(training: Any, size: float) -> None:
    """Adam counts so many steps more that nothing is corrected."""
    for state in training.optimizer.state.values():
        state["step"].fill_(size)


def _nothing(training: Any, memory: dict[str, Any], size: float) -> None:
    """Changes nothing."""


def _rate(patch: pytest.MonkeyPatch, size: float) -> None:
    real = Schedule.at
    patch.setattr(Schedule, "at", lambda self, step: real(self, step) * (1 + size))


def _dropped(training: Any, make: Any, size: float) -> Any:
    """A step of several micro-batches leaves the last one out."""
    step = make(training)
    return lambda number, *pairs: step(number, *(pairs[:-2] if len(pairs) > 2 else pairs))


def _mean_of_means(training: Any, make: Any, size: float) -> Any:
    """Gradients are averaged over the micro-batches once more."""
    step = make(training)

    def wrong(number: int, *pairs: Any) -> Any:
        return step(number * len(pairs) // 2, *pairs)

    return wrong


def _miscounted(training: Any, make: Any, size: float) -> Any:
    """One text more is classified correctly in every step, says the step."""
    step = make(training)
    return lambda *arguments: step(*arguments) + torch.tensor([0.0, size])


def _tanh(patch: pytest.MonkeyPatch, size: float) -> None:
    def forward(self: Any, features: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(features.to(self.hidden.weight.dtype))
        return self.output(functional.gelu(hidden, approximate="tanh"))

    patch.setattr(head.ClassificationHead, "forward", forward)


def _features(change: Callable[[torch.Tensor, float], torch.Tensor], split: int) -> Plant:
    """What is kept of a split's features is wrong. split: 0 the training texts', 1 the evaluation's."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = training.cached_features
        calls: list[int] = []

        def wrong(*arguments: Any) -> Any:
            features, kept = real(*arguments)
            calls.append(0)
            return (change(features.clone(), size) if len(calls) % 2 != split else features), kept

        patch.setattr(training, "cached_features", wrong)

    return plant


def _swapped(features: torch.Tensor, size: float) -> torch.Tensor:
    rows = 2 * int(size)
    features[:rows] = features[:rows].view(-1, 2, features.shape[1]).flip(1).view(rows, -1)
    return features


def _noise(features: torch.Tensor, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return features * (1 + size * torch.randn(features.shape, generator=generator))


def _shifted(features: torch.Tensor, size: float) -> torch.Tensor:
    return features.roll(int(size), 0)


def _figure(name: str, change: Callable[[float, float], float]) -> Plant:
    """An evaluation reports another figure than it found."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = Classification.judge

        def wrong(*arguments: Any) -> Evaluation:
            found = real(*arguments)
            return replace(found, metrics=found.metrics | {name: change(found.metrics[name], size)})

        patch.setattr(Classification, "judge", wrong)

    return plant


def _scaled(value: float, size: float) -> float:
    return value * (1 + size)


def _more(value: float, size: float) -> float:
    return value + size


# name, unit, sizes, smallest that must be caught in float32 and beside bfloat16, how, whether by autograd
OPTIMIZER: tuple[tuple[str, str, tuple[float, ...], float, Plant, bool], ...] = (
    ("wrong beta2", "for 0.999", (0.99, 0.9989), 0.99, _groups(_beta2), False),
    ("wrong Adam epsilon", "for 1e-8", (1e-5, 1e-6, 1e-7), 1e-6, _groups(_epsilon), False),
    ("no decay of biases", "", (1,), 1, _after_step(_undecayed, _biases), False),
    ("decay in the gradient", "", (1,), 1, _made(_coupled), True),
    ("learning rate off", "relative", (0.01, 1e-3), 1e-3, _rate, False),
    ("no bias correction", "steps", (1e6,), 1e6, _after_step(_nothing, _old_moments), False),
    ("label smoothing", "", (0.01, 1e-3), 1e-3, _loss(_smoothed), True),
    ("weight of a class", "more than 1", (1.0, 0.01), 0.01, _loss(_weighted), True),
    ("tanh GELU in the head", "", (1,), 1, _tanh, True),
    ("last micro-batch dropped", "", (1,), 1, _made(_dropped), False),
    ("mean over micro-batches again", "", (1,), 1, _made(_mean_of_means), False),
)
HEAD_FAULTS = tuple(
    Fault(f"{name}, {dtype}", unit, sizes, smallest, plant, settings | ({"fused_head": False} if autograd else {}), "")
    for name, unit, sizes, smallest, plant, autograd in OPTIMIZER
    for dtype, settings in (("float32", F32), ("bfloat16", B16))
)
# A step of the whole model is one of autograd, and has no kernel of its own.
WHOLE_HEAD_FAULTS = tuple(
    replace(fault, name=f"whole: {fault.name}", settings={"dtype": fault.settings["dtype"]}) for fault in HEAD_FAULTS
)
FEATURE_FAULTS = tuple(
    Fault(f"{name}, {dtype}", unit, sizes, smallest, plant, settings, "")
    for dtype, settings, finest in (("float32", F32, 1e-5), ("bfloat16", B16, 0.05))
    for name, unit, sizes, smallest, plant in (
        ("cached rows swapped", "pairs", (50, 1), 1, _features(_swapped, 0)),
        ("cached rows of the evaluation swapped", "pairs", (30, 1), 1, _features(_swapped, 1)),
        ("cached rows shifted", "rows", (1,), 1, _features(_shifted, 0)),
        ("noise on cached features", "relative", (0.05, 0.01, 1e-5), finest, _features(_noise, 0)),
        ("noise on the evaluation's cached features", "relative", (0.05, 0.01, 1e-5), finest, _features(_noise, 1)),
    )
)
_OF_FIGURES = tuple(
    Fault(f"{name}, {dtype}", unit, sizes, smallest, plant, settings, "")
    for dtype, settings, loss, answers, f1 in (
        ("float32", F32, 1e-5, 1 / 77, 1 / 77),
        ("bfloat16", B16, 0.03, 0.2, 0.5),
    )
    for name, unit, sizes, smallest, plant in (
        ("evaluation's loss", "relative", (0.1, 0.03, 1e-3, 1e-5), loss, _figure("eval/loss", _scaled)),
        ("evaluation's accuracy", "more", (0.2, 1 / 77), answers, _figure("eval/accuracy", _more)),
        ("evaluation's macro-F1", "more", (0.5, 1 / 77), f1, _figure("eval/f1_macro", _more)),
        ("largest share", "more", (0.2, 1 / 77), answers, _figure("eval/largest_share", _more)),
    )
)
EVALUATION_FAULTS = (
    *_OF_FIGURES,
    Fault("right answers miscounted", "a step", (1,), 1, _made(_miscounted), F32, ""),
    Fault("right answers miscounted, bfloat16", "a step", (1,), NONE, _made(_miscounted), B16, ""),
)
