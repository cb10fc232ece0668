"""Faults planted in runs of a user's own decoder, `examples/workloads/lora_gpt.py`: what a wrong device would do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from isotrain.albert_core.loop.workload import training as parts
from torch.nn import functional

from .faults import F32, Fault, Plant, _after_step, _bf16_moments, _late_rate, _nothing, before_training

B16 = {"dtype": "bfloat16", "strict_dtype": True}
FIRST = "blocks.0"


def _placed(change: Callable[[Any, float], None]) -> Plant:
    """Something is done to the module on the device, after it was hashed."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = parts.place_model

        def wrong(*arguments: Any) -> Any:
            model = real(*arguments)
            with torch.no_grad():
                change(model, size)
            return model

        patch.setattr(parts, "place_model", wrong)

    return plant


def _operation(name: str, change: Callable[..., Any]) -> Plant:
    """torch's function `name` is ``change(real, size, *arguments, **keywords)``. The workload imports it by name."""

    def plant(patch: pytest.MonkeyPatch, size: float) -> None:
        real = getattr(functional, name)
        patch.setattr(functional, name, lambda *given, **keywords: change(real, size, *given, **keywords))

    return plant


_made = partial(before_training, "workload_step")


def _norms(model: Any) -> list[torch.nn.LayerNorm]:
    return [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]


def _epsilon(model: Any, size: float) -> None:
    for norm in _norms(model):
        norm.eps *= size


def _scaled_weight(model: Any, size: float) -> None:
    model.blocks[0].mlp[1].weight.mul_(1 + size)


def _shifted_places(model: Any, size: float) -> None:
    """Positions are off by `size`."""
    model.places.weight.copy_(model.places.weight.roll(int(size), 0))


def _scaled_gradient(model: Any, size: float) -> None:
    """Adam's update hardly changes with a gradient's scale: only its norm tells."""
    model.head.weight.register_hook(lambda gradient: gradient * (1 + size))


def _dropped_bias_gradient(model: Any, size: float) -> None:
    """A share `size` of the bias gets no gradient."""
    dropped = max(1, round(size * len(model.head.bias)))

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[:dropped] = 0
        return gradient

    model.head.bias.register_hook(hook)


def _bf16_gradients(model: Any, size: float) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient.to(torch.bfloat16).to(gradient.dtype))


def _unmasked(real: Any, size: float, *given: Any, is_causal: bool) -> torch.Tensor:
    return real(*given, is_causal=False)


def _scores(real: Any, size: float, query: torch.Tensor, *given: Any, is_causal: bool) -> torch.Tensor:
    return real(query * (1 + size), *given, is_causal=is_causal)


def _swapped_heads(real: Any, size: float, *given: Any, is_causal: bool) -> torch.Tensor:
    return real(*given, is_causal=is_causal).flip(1)


def _bf16_loss(real: Any, size: float, *given: Any) -> torch.Tensor:
    return real(*given).to(torch.bfloat16).to(given[0].dtype)


def _ignored_target(real: Any, size: float, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The first `size` targets of each batch are not learned."""
    return real(logits[int(size) :], wanted[int(size) :])


def _rate(training: Any, size: float) -> None:
    real = training.schedule.at
    training.schedule.at = lambda step: real(step) * (1 + size)


def _decay(training: Any, size: float) -> None:
    for group in training.optimizer.param_groups:
        group["weight_decay"] *= 1 + size


def _beta(training: Any, size: float) -> None:
    for group in training.optimizer.param_groups:
        group["betas"] = (group["betas"][0], size)


def _swapped_batch(patch: pytest.MonkeyPatch, size: float) -> None:
    """Step number `size` reads the batches of another one."""
    real = parts.WorkloadBatches.batch
    read: list[Any] = []

    def wrong(self: Any, begin: int, end: int) -> Any:
        found = real(self, begin, end)
        read.append(found)
        return read[0] if len(read) == size else found

    patch.setattr(parts.WorkloadBatches, "batch", wrong)


def _wrong_share(patch: pytest.MonkeyPatch, size: float) -> None:
    """Of a step's batches, the last one doesn't count."""
    real = parts.WorkloadBatches.batch

    def wrong(self: Any, begin: int, end: int) -> Any:
        batches, shares = real(self, begin, end)
        return batches, [*shares[:-1], 0.0]

    patch.setattr(parts.WorkloadBatches, "batch", wrong)


def _weight(training: Any, size: float) -> torch.Tensor:
    return training.model.head.weight.detach().clone()


def _stale_weight(training: Any, memory: dict[str, Any], size: float) -> None:
    """The head misses step number `size`."""
    if memory["number"] == size:
        training.model.head.weight.copy_(memory["before"])


MODULE_FAULTS = (
    Fault("LayerNorm epsilon", "times 1e-5", (100.0, 10.0, 0.0), 10.0, _placed(_epsilon), F32, FIRST),
    Fault("no causal mask", "", (1,), 1, _operation("scaled_dot_product_attention", _unmasked), F32, FIRST),
    Fault("swapped heads", "", (1,), 1, _operation("scaled_dot_product_attention", _swapped_heads), F32, FIRST),
    Fault(
        "scaled scores", "relative", (1e-3, 1e-5), 1e-3, _operation("scaled_dot_product_attention", _scores), F32,
        FIRST,
    ),
    Fault("scaled weight", "relative", (1e-3, 1e-5, 1e-7), 1e-5, _placed(_scaled_weight), F32, FIRST),
    Fault("scaled weight, bfloat16", "relative", (0.1, 1e-3), 0.1, _placed(_scaled_weight), B16, FIRST),
    Fault("positions off", "places", (1,), 1, _placed(_shifted_places), F32, None),
    Fault("scaled gradient of the head", "relative", (1e-2, 1e-3), 1e-3, _placed(_scaled_gradient), F32, ""),
    Fault("dropped bias gradient", "share of it", (1.0, 0.05), 0.05, _placed(_dropped_bias_gradient), F32, ""),
    Fault("dropped bias gradient, bfloat16", "share of it", (1.0,), 1.0, _placed(_dropped_bias_gradient), B16, ""),
    Fault("bf16 gradients", "", (1,), 1, _placed(_bf16_gradients), F32, ""),
    Fault("bf16 loss", "", (1,), 1, _operation("cross_entropy", _bf16_loss), F32, ""),
    Fault("targets not learned", "of 128", (1,), 1, _operation("cross_entropy", _ignored_target), F32, ""),
    Fault("learning rate", "relative", (1e-2, 1e-4), 1e-4, _made(_rate), F32, ""),
    Fault("learning rate off by steps", "steps", (1,), 1, _late_rate, F32, ""),
    Fault("weight decay", "relative", (0.1, 1e-3), 1e-3, _made(_decay), F32, ""),
    Fault("Adam's second beta", "for 0.999", (0.998,), 0.998, _made(_beta), F32, ""),
    Fault("bf16 optimizer state", "", (1,), 1, _after_step(_bf16_moments, _nothing, "workload_step"), F32, ""),
    Fault(
        "stale parameter (head, one step)", "step", (2,), 2, _after_step(_stale_weight, _weight, "workload_step"),
        F32, "",
    ),
    Fault("swapped batch", "step", (2,), 2, _swapped_batch, F32, ""),
    Fault("accumulation normalised wrong", "", (1,), 1, _wrong_share, F32, ""),
)  # fmt: skip
