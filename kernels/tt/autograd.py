"""Training through emulated numerics: a linear layer that runs forward and backward on the emulated matrix unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .arithmetic import Arithmetic
from .formats import host_convert
from .linear import linear


class TtLinear(torch.autograd.Function):
    """``TtLinear.apply(x, weight, bias, arithmetic)``: functional.linear with its products computed in `arithmetic`.

    These are the three products of a training step: y = x W^T + b, dx = dy W and dW = dy^T x. Operands keep their
    dtype's values: bfloat16 unchanged, float32 as the unit reads it (10 bits of mantissa). The bias's gradient is a
    plain float32 sum. x is (..., in), weight (out, in), bias (out) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arithmetic, ctx.has_bias = arithmetic, bias is not None
        return _product(x.reshape(-1, x.shape[-1]), weight.T, bias, arithmetic).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].reshape(-1, weight.shape[0])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _product(dy, weight, None, ctx.arithmetic).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = _product(dy.T, x.reshape(-1, x.shape[-1]), None, ctx.arithmetic)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = dy.to(torch.float32).sum(dim=0).to(dy.dtype)
        return dx, dw, db, None


def emulate_linears(module: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """Makes every nn.Linear in `module` compute by `TtLinear`, and returns `module`. Parameters stay where they are.

    Everything else (activations, loss) stays torch's own.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            # Set on the layer itself, which others may hold. mypy allows no assignment to a method.
            part.forward = _emulated_forward(part, arithmetic)  # type: ignore[method-assign]
    return module


def plain_linears(module: nn.Module) -> nn.Module:
    """Makes every nn.Linear in `module` compute as torch does again (undoes `emulate_linears`), and returns `module`.

    A copy of an emulated module always needs this, because its layers would use the original's weights.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            vars(part).pop("forward", None)
    return module


def _emulated_forward(layer: nn.Linear, arithmetic: Arithmetic) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return TtLinear.apply(x, layer.weight, layer.bias, arithmetic)
        flat = _product(x.reshape(-1, x.shape[-1]), layer.weight.T, layer.bias, arithmetic)
        return flat.view(*x.shape[:-1], layer.out_features)

    return forward


def _product(in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic) -> torch.Tensor:
    """in0 @ in1 + bias as a tensor of in0's dtype: bfloat16, or float32 with the precision that the unit keeps."""
    if in0.dtype == torch.bfloat16:
        # The other operand may be a float32 master weight.
        in1 = host_convert(in1, "bfloat16")
        bias = None if bias is None else host_convert(bias, "bfloat16")
        return linear(in0.to(torch.float32), in1, bias, arithmetic).to(torch.bfloat16)
    if in0.dtype != torch.float32:
        return functional.linear(in0, in1.T, bias)
    return linear(in0, in1.to(torch.float32), bias, arithmetic, out_dtype="float32")
