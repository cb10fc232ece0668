"""Batch normalisation (Ioffe and Szegedy 2015) for devices whose own kernel updates the running statistics wrongly."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def correct_running_statistics(key: str) -> torch.library.Library:
    """Replaces the kernel of tensors with the dispatch key `key`, "XLA" or "PrivateUse1", in this process.

    torch_xla 2.9 keeps the biased variance, and torch_tpu 0.2 changes no running statistics at all.

    Returns:
        The replacement, which is in force as long as this object exists.
    """
    import torch

    def native_batch_norm(
        values: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        if training:
            rows = wide.transpose(0, 1).flatten(1)
            variance, mean = torch.var_mean(rows, 1, correction=0)
            samples = rows.shape[1]
            if running_mean is not None and running_var is not None:
                unbiased = variance * (samples / max(1, samples - 1))
                # Backward doesn't read them, so it needn't see the change, as elsewhere.
                running_mean.data.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.data.lerp_(unbiased.to(running_var.dtype), momentum)
        else:
            assert running_mean is not None
            assert running_var is not None
            mean, variance = running_mean.to(wide.dtype), running_var.to(wide.dtype)
        inverse = (variance + eps).rsqrt()
        shape = [-1, *[1] * (values.dim() - 2)]
        result = (wide - mean.view(shape)) * inverse.view(shape)
        if weight is not None:
            result = result * weight.view(shape)
        if bias is not None:
            result = result + bias.view(shape)
        return result.to(values.dtype), mean if training else mean[:0], inverse if training else inverse[:0]

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns of every kernel that is replaced.
        warnings.simplefilter("ignore")
        library.impl("native_batch_norm", native_batch_norm, key)
    return library
