"""Frozen encoders by kernel name: the backend's own, or the transformers module with the same interface."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ... import UserError
from ...backends import Backend, CastPolicy, FrozenEncoder
from ...kernels.packed import PackedBatch, PaddedBatch
from ..model.encoder import LoadedEncoder
from ..model.transformers_module import encoder_layers, padded_states


def frozen_encoder(encoder: LoadedEncoder, backend: Backend, policy: CastPolicy, kernel: str) -> FrozenEncoder:
    """The frozen encoder for `kernel`: the transformers module for ``transformers``, else the backend's own."""
    if kernel == "transformers":
        return TransformersEncoder(encoder.module(), backend, policy)
    return backend.frozen_encoder(encoder.weights, policy, kernel)


class TransformersEncoder:
    """The frozen forward pass through transformers' own layers, for padded batches only.

    As ``model.to(bfloat16)`` would do, the weights are rounded to the parameter dtype before the module is cast to the
    policy's compute dtype. Normalisation and softmax then run in the dtype that transformers chooses.
    """

    name = "transformers"
    skips_padding = False
    batch_invariant = False

    def __init__(self, module: nn.Module, backend: Backend, policy: CastPolicy) -> None:
        import transformers

        self.version = transformers.__version__
        self.module = backend.place(in_dtype(module, policy))
        self._static = backend.static_shapes is not None

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features (sequences, hidden), float32."""
        if isinstance(batch, PackedBatch):
            raise UserError("kernel transformers takes padded batches only; set layout: padded or bucketed")
        with torch.no_grad():
            # Contiguous, because a view would keep every token's state in memory.
            return padded_states(self.module, batch, static=self._static)[:, 0].float().contiguous()

    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `backends.FrozenEncoder`."""
        if isinstance(batch, PackedBatch):
            raise UserError("kernel transformers takes padded batches only; set layout: padded or bucketed")
        return module_layer_states(self.module, batch, given)


def in_dtype(module: nn.Module, policy: CastPolicy) -> nn.Module:
    """A frozen copy of `module` with its weights rounded to the parameter dtype, then cast to the compute dtype.

    Raises:
        UserError: Its layers can't multiply the compute dtype.
    """
    if policy.eight_bit:
        raise UserError(
            f"transformers' module has no {policy.label}; choose dtype bfloat16, or kernel auto with layout auto"
        )
    rounded = copy.deepcopy(module).to(getattr(torch, policy.param)).to(getattr(torch, policy.compute))
    return rounded.eval().requires_grad_(False)


@torch.no_grad()
def module_layer_states(
    encoder: Any, batch: PaddedBatch, given: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """`FrozenEncoder.layer_states` of a transformers AlbertModel or BertModel, by hooks on its layers.

    The order of the calls tells apart layers that share their weights.
    """
    states: list[torch.Tensor] = []

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if given is not None:
            hidden = arguments[0]
            return (given[len(states)].to(hidden.device, hidden.dtype), *arguments[1:])
        if not states:
            states.append(arguments[0].detach().clone())
        return None

    def after(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        del arguments
        states.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    hooks = [hook for layer in encoder_layers(encoder) for hook in _hooked(layer, before, after)]
    try:
        encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def _hooked(layer: nn.Module, before: Any, after: Any) -> tuple[Any, Any]:
    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after)
