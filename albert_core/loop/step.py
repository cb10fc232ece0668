"""One optimizer step: fused or captured in a graph if the device can do that, else by autograd."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ...backends import Backend, HeadStep
from ...backends.training.loss_scale import LossScale, unscaled
from ...kernels.packed import PackedBatch, PaddedBatch
from ..config.schema import TrainConfig
from ..model.whole import WholeModel
from ..processes.ranks import ALONE, Ranks, accumulating
from ..tasks import TASKS
from ..workload.step import update

log = logging.getLogger("isotrain")


def step_function(
    config: TrainConfig,
    backend: Backend,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    summed: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    before_update: Callable[[], object] = lambda: None,
    keep_norm: Callable[[torch.Tensor], object] = lambda _: None,
    ranks: Ranks = ALONE,
    parallel: nn.Module | None = None,
    scale: LossScale | None = None,
    weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[..., torch.Tensor]:
    """Builds the function that makes an optimizer step: forward, backward and update.

    Each micro-batch's loss is divided by the number of all samples. The gradient is then that of one batch of all of
    them, even if the last micro-batch is smaller. A head on frozen features is passed to the backend, which may have a
    fused step or record and replay this one, unless something reads the gradients. It may also record the steps of a
    whole model on padded batches, whose shapes repeat.

    Args:
        summed: The summed loss and the number of correct answers of a batch.
        before_update: Called before each update, if the step isn't replayed.
        keep_norm: Called after each step with the gradient's norm, if it was computed.
        parallel: With several `ranks`, the wrapper of `model` that averages their gradients.
        scale: The loss scale, if the dtype needs one.
        weigh: The summed weight of a batch's labels. The step's loss is then the weighted mean over all its samples,
            as that of torch's cross entropy over one batch of them.

    Returns:
        ``step(num_samples, inputs, labels, inputs, labels, ...)``, with one pair per micro-batch.
    """
    scaling = scale or unscaled()
    watched = "wandb" in config.tracker_names and config.wandb_watch_mode is not None
    alone = ranks.size == 1
    on_features = not isinstance(model, WholeModel)
    if alone and on_features and config.fused_head and config.max_grad_norm is None and not watched:
        reasons = _not_fused(config)
        if reasons:
            log.info("the head is trained by autograd: no fused step computes %s", " and ".join(reasons))
        else:
            fused = backend.head_step(list(model.parameters()), optimizer)
            if fused is not None:
                return partial(_fused_step, fused, backend)

    def sums_and_norm(num_samples: int, *pairs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        sums = None
        # Each process divides by an average share, so that the average over processes is the mean over all samples.
        size = backend.scalar(num_samples if alone else num_samples / ranks.size)
        batches = list(zip(pairs[::2], pairs[1::2], strict=True))
        mean_weight = None
        if weigh is not None:
            weights = torch.stack([weigh(labels) for _, labels in batches])
            mean_weight = ranks.total(weights.sum()) / (size * ranks.size)
        for number, (inputs, labels) in enumerate(batches, start=1):
            with accumulating(parallel or model) if number < len(batches) else nullcontext():
                loss, right = summed(inputs, labels)
                loss = loss if mean_weight is None else loss / mean_weight
                with backend.named_range("backward"):
                    scaling.scaled(loss / size).backward()
            wide = torch.promote_types(loss.dtype, torch.float32)
            part = torch.stack((loss.detach().to(wide), right.to(wide)))
            sums = part if sums is None else sums + part
        norm = update(
            model.parameters(),
            backend,
            optimizer,
            scaling,
            config.max_grad_norm,
            before_update,
            measured=not on_features,
        )
        assert sums is not None, "a window holds at least one micro-batch"
        return sums, norm

    def step(num_samples: int, *pairs: Any) -> torch.Tensor:
        sums, norm = sums_and_norm(num_samples, *pairs)
        if norm is not None:
            keep_norm(norm)
        return sums

    def joined(*tensors: torch.Tensor) -> torch.Tensor:
        """Both in one tensor: a replay runs no Python, and writes what it computes into the same memory each time."""
        pairs = _pairs(tensors, on_features)
        sums, norm = sums_and_norm(sum(len(labels) for labels in pairs[1::2]), *pairs)
        return sums if norm is None else torch.cat((sums, norm.to(sums.dtype).view(1)))

    if alone and not watched and (on_features or not _not_repeated(config, scaling)):
        captured = backend.capture_step(joined, optimizer)
        if captured is not joined:

            def replayed(num_samples: int, *pairs: Any) -> torch.Tensor:
                # Hardly two packed batches have the same shape, and a replay calls no hook.
                if any(isinstance(inputs, PackedBatch) for inputs in pairs[::2]) or _has_hooks(model):
                    return step(num_samples, *pairs)
                found = captured(*chain.from_iterable(map(_tensors, pairs)))
                if len(found) > 2:
                    keep_norm(found[2])
                return found[:2]

            return replayed
    return step


def _not_fused(config: TrainConfig) -> list[str]:
    """What `config` asks for and no fused step of a head computes."""
    asked = {
        f"the loss of task {config.task}": not TASKS[config.task].cross_entropy,
        "head": config.head != "mlp",
        "head_dropout": config.head_dropout > 0,
        "label_smoothing_factor": config.label_smoothing_factor > 0,
        "class_weights": config.class_weights is not None,
    }
    return [what for what, wanted in asked.items() if wanted]


def _not_repeated(config: TrainConfig, scaling: LossScale) -> bool:
    """Whether the step of a whole model reads something on the host, or is a compiler's program."""
    return config.torch_compile is not None or config.gradient_checkpointing or scaling.scaler is not None


def _has_hooks(model: nn.Module) -> bool:
    return any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def _tensors(part: torch.Tensor | PaddedBatch) -> tuple[torch.Tensor, ...]:
    """What a step reads of inputs or labels. Type 0 stands for no token types."""
    if isinstance(part, torch.Tensor):
        return (part,)
    types = part.token_type_ids
    return part.input_ids, part.attention_mask, torch.zeros_like(part.input_ids) if types is None else types


def _pairs(tensors: Sequence[torch.Tensor], on_features: bool) -> list[Any]:
    """Inputs and labels in turns, of what `_tensors` gave for them."""
    if on_features:
        return list(tensors)
    parts = (tensors[at : at + 4] for at in range(0, len(tensors), 4))
    return list(chain.from_iterable((PaddedBatch(ids, mask, types), labels) for ids, mask, types, labels in parts))


def _fused_step(fused: HeadStep, backend: Backend, num_samples: int, *pairs: torch.Tensor) -> torch.Tensor:
    """One fused step over the features and labels of all micro-batches."""
    features, labels = (part[0] if len(part) == 1 else torch.cat(part) for part in (pairs[::2], pairs[1::2]))
    with backend.named_range("fused head step"):
        return fused(features, labels, num_samples)
