"""Faults planted in a run that otherwise is right: each a context, at a size, inside which a trace is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from isotrain.albert_core.features import compute as features
from isotrain.albert_core.loop import start
from isotrain.albert_core.loop.schedule import Schedule
from isotrain.albert_core.tasks import texts
from isotrain.backends.cpu import CpuBackend
from isotrain.kernels.packed import PaddedBatch
from isotrain.kernels.weights import EncoderWeights

REFUSED = "refused"

Plant = Callable[[pytest.MonkeyPatch, float], None]


@dataclass(frozen=True)
class Fault:
    """sizes: from the largest to what nothing can tell from rounding. smallest: what must be caught, and all above it.

    settings: what the run is set to for it. where: what the verdict must name: a layer, "" for no layer, or
    REFUSED where there must be no comparison at all; None: any.
    """

    name: str
    unit: str
    sizes: tuple[float, ...]
    smallest: float
    plant: Plant
    settings: dict[str, Any]
    where: str | None = None

    @property
    def required(self) -> tuple[float, ...]:
        return tuple(size for size in self.sizes if size >= self.smallest)


@contextmanager
def planted(fault: Fault, size: float) -> Iterator[None]:
    """With a cache of its own: what a faulty encoder leaves there is no other run's, and the other way round."""
    with TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOTRAIN_CACHE", cache)
        fault.plant(patch, size)
        yield


def before_training(make_step: str, change: Callable[[Any, float], None]) -> Plant:
    """Something is done to a run's parts, after what is trained was hashed, before `make_step` of `start` is called."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = getattr(start, make_step)

        def make(training: Any) -> Any:
            change(training, size)
            return real(training)

        patch.setattr(start, make_step, make)

    return plant


def _weights(change: Callable[[EncoderWeights, float], EncoderWeights]) -> Plant:
    """The device computes with other weights than it was given."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = CpuBackend.frozen_encoder

        def wrong(self: Any, weights: EncoderWeights, *rest: Any) -> Any:
            return real(self, change(weights, size), *rest)

        patch.setattr(CpuBackend, "frozen_encoder", wrong)

    return plant


def _layer(weights: EncoderWeights, **changed: torch.Tensor) -> EncoderWeights:
    first, *others = weights.layers
    return replace(weights, layers=(replace(first, **changed), *others))


def _scaled_weight(weights: EncoderWeights, size: float) -> EncoderWeights:
    return _layer(weights, ffn_weight=weights.layers[0].ffn_weight * (1 + size))


def _dropped_bias(weights: EncoderWeights, size: float) -> EncoderWeights:
    """A share `size` of the value bias is missing."""
    bias = weights.layers[0].value_bias.clone()
    bias[: max(1, round(size * len(bias)))] = 0
    return _layer(weights, value_bias=bias)


def _epsilon(weights: EncoderWeights, size: float) -> EncoderWeights:
    return replace(weights, config=replace(weights.config, layer_norm_eps=size))


def _other_gelu(weights: EncoderWeights, size: float) -> EncoderWeights:
    return replace(weights, config=replace(weights.config, activation="gelu"))


def _batches(change: Callable[[Any, int, int, float], Any]) -> Plant:
    """Batches reach the device otherwise than they were hashed."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = features.TokenBatches._on_host
        count = [0]

        def wrong(self: Any, start: int, stop: int) -> Any:
            batch, labels = real(self, start, stop)
            # The order is shuffled in training alone.
            if not (self.order[:-1] < self.order[1:]).all():
                count[0] += 1
                batch, labels = change((self, real, batch, labels), start, count[0], size)
            return batch, labels

        patch.setattr(features.TokenBatches, "_on_host", wrong)

    return plant


def _swapped_labels(parts: Any, start: int, number: int, size: float) -> Any:
    """In the first `size` micro-batches, two neighbours have each other's labels."""
    _, _, batch, labels = parts
    different = (labels[1:] != labels[:-1]).nonzero().flatten()
    if number <= size and len(different):
        first = int(different[0])
        labels = labels.clone()
        labels[[first, first + 1]] = labels[[first + 1, first]]
    return batch, labels


def _swapped_batch(parts: Any, start: int, number: int, size: float) -> Any:
    """The micro-batch number `size` is another one."""
    source, real, batch, labels = parts
    return real(source, 0, 8) if number == size else (batch, labels)


class _Unmasked:
    """An encoder that attends to padding."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.name, self.version = encoder, encoder.name, encoder.version

    def __call__(self, batch: PaddedBatch) -> torch.Tensor:
        return self.encoder(replace(batch, attention_mask=torch.ones_like(batch.attention_mask)))

    def layer_states(self, batch: PaddedBatch, given: Any = None) -> list[torch.Tensor]:
        return self.encoder.layer_states(replace(batch, attention_mask=torch.ones_like(batch.attention_mask)), given)


def _no_mask(patch: pytest.MonkeyPatch, size: float) -> None:
    real = CpuBackend.frozen_encoder
    patch.setattr(CpuBackend, "frozen_encoder", lambda self, *rest: _Unmasked(real(self, *rest)))


def _after_step(
    change: Callable[[Any, dict[str, Any], float], None], before: Callable[[Any, float], Any], maker: str = "make_step"
) -> Plant:
    """Something is done to parameters or optimizer after each step, which `maker` makes."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = getattr(start, maker)

        def make(training: Any) -> Any:
            step = real(training)
            memory: dict[str, Any] = {"number": 0}

            def wrong(*arguments: Any) -> Any:
                memory["number"] += 1
                memory["before"] = before(training, size)
                result = step(*arguments)
                with torch.no_grad():
                    change(training, memory, size)
                return result

            return wrong

        patch.setattr(start, maker, make)

    return plant


def _keep(training: Any, memory: dict[str, Any], size: float) -> None:
    """Changes nothing."""


def _nothing(training: Any, size: float) -> None:
    return None


def _bias(training: Any, size: float) -> torch.Tensor:
    return training.model.output.bias.detach().clone()


def _stale_bias(training: Any, memory: dict[str, Any], size: float) -> None:
    """The last layer's bias misses step number `size`."""
    if memory["number"] == size:
        training.model.output.bias.copy_(memory["before"])


def _bf16_moments(training: Any, memory: dict[str, Any], size: float) -> None:
    for state in training.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].copy_(state[name].to(torch.bfloat16))


def _bf16_loss(patch: pytest.MonkeyPatch, size: float) -> None:
    real = start.make_step

    def make(training: Any) -> Any:
        loss = training.loss

        def rounded(inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, right = loss(inputs, labels)
            return value.to(torch.bfloat16).to(value.dtype), right

        training.loss = rounded
        return real(training)

    patch.setattr(start, "make_step", make)


def _decay(patch: pytest.MonkeyPatch, size: float) -> None:
    """Weight decay is `size` (relative) off."""
    real = start.make_step

    def make(training: Any) -> Any:
        for group in training.optimizer.param_groups:
            group["weight_decay"] *= 1 + size
        return real(training)

    patch.setattr(start, "make_step", make)


def _late_rate(patch: pytest.MonkeyPatch, size: float) -> None:
    """The learning rate of step n is that of step n + `size`."""
    real = Schedule.at
    patch.setattr(Schedule, "at", lambda self, step: real(self, step + int(size)))


def _wrong_normaliser(patch: pytest.MonkeyPatch, size: float) -> None:
    """A window's loss is divided by what whole micro-batches would hold, whatever the last one holds."""
    real = start.make_step

    def make(training: Any) -> Any:
        step = real(training)
        whole = training.stream.batch_size * training.stream.accumulation
        return lambda _, *pairs: step(whole, *pairs)

    patch.setattr(start, "make_step", make)


def _other_seed(patch: pytest.MonkeyPatch, size: float) -> None:
    """The head is drawn with another seed: the hashes must tell."""
    real = texts.sequence_head
    patch.setattr(
        texts,
        "sequence_head",
        lambda width, labels, config: real(width, labels, config.model_copy(update={"seed": config.seed + int(size)})),
    )


def _moved_head(training: Any, size: float) -> None:
    """After it was hashed, the head is moved by `size` of its weights."""
    if not training.state.step:
        with torch.no_grad():
            for parameter in training.model.parameters():
                parameter.mul_(1 + size)


def _not_finite(training: Any, memory: dict[str, Any], size: float) -> None:
    if memory["number"] == size:
        for parameter in training.model.parameters():
            parameter.fill_(float("nan"))


F32 = {"dtype": "float32"}
B16 = {"dtype": "bfloat16", "kernel": "portable"}
INT8 = {"dtype": "int8", "kernel": "portable"}
STREAMED = {"feature_cache": False}
AUTOGRAD = F32 | {"fused_head": False}

NOT_FINITE = Fault("weights NaN", "after step", (5,), 5, _after_step(_not_finite, _nothing), F32, "")

FAULTS = (
    Fault("scaled weight", "relative", (1e-2, 1e-4, 1e-5, 1e-6, 1e-7), 1e-5, _weights(_scaled_weight), F32, "layer 1"),
    Fault(
        "scaled weight, bfloat16",
        "relative",
        (0.3, 0.1, 0.03, 0.01, 1e-3),
        0.1,
        _weights(_scaled_weight),
        B16,
        "layer 1",
    ),
    Fault("scaled weight, int8", "relative", (3.0, 1.0, 0.3), 0.3, _weights(_scaled_weight), INT8, "layer 1"),
    Fault("dropped bias", "share of it", (1.0, 0.25, 0.02), 0.02, _weights(_dropped_bias), F32, "layer 1"),
    Fault("dropped bias, bfloat16", "share of it", (1.0, 0.25, 0.02), 0.25, _weights(_dropped_bias), B16, "layer 1"),
    Fault("wrong LayerNorm epsilon", "for 1e-12", (1e-3, 1e-5, 1e-6, 1e-7, 1e-8), 1e-6, _weights(_epsilon), F32, None),
    Fault("gelu erf for tanh", "", (1,), 1, _weights(_other_gelu), F32, "layer 1"),
    Fault("missing attention mask", "", (1,), 1, _no_mask, F32 | {"layout": "padded"}, "layer 1"),
    Fault("swapped labels", "micro-batches", (10, 1), 1, _batches(_swapped_labels), F32 | STREAMED, ""),
    Fault("swapped labels, bfloat16", "micro-batches", (10, 1), 1, _batches(_swapped_labels), B16 | STREAMED, ""),
    Fault("one batch swapped", "its number", (45, 3), 3, _batches(_swapped_batch), F32 | STREAMED, ""),
    Fault("stale parameter (bias, one step)", "step", (20, 2), 2, _after_step(_stale_bias, _bias), F32, ""),
    Fault("bf16 loss", "", (1,), 1, _bf16_loss, AUTOGRAD, ""),
    Fault("bf16 optimizer state", "", (1,), 1, _after_step(_bf16_moments, _nothing), F32, ""),
    Fault("wrong weight decay", "relative", (1.0, 0.1, 0.01, 1e-3), 0.01, _decay, F32, ""),
    Fault("learning rate off by steps", "steps", (1,), 1, _late_rate, F32, ""),
    Fault("seed not applied (head)", "seeds", (1,), 1, _other_seed, F32, REFUSED),
    Fault(
        "head not placed as drawn", "relative", (1e-3, 1e-5, 1e-6, 1e-7), 1e-6, _after_step(_keep, _moved_head), F32, ""
    ),
    Fault("accumulation normalised wrong", "", (1,), 1, _wrong_normaliser, F32, ""),
)
