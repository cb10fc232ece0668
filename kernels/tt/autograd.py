"""A training step's operations on the emulated device as autograd functions: forward and backward in its arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from . import stored
from .arithmetic import Arithmetic
from .formats import host_convert
from .linear import linear

Gradients = tuple[torch.Tensor | None, ...]


class TtLinear(torch.autograd.Function):
    """``TtLinear.apply(x, weight, bias, arithmetic)``: functional.linear with its products computed in `arithmetic`.

    These are the three products of a training step: y = x W^T + b, dx = dy W and dW = dy^T x. Operands keep their
    dtype's values: bfloat16 unchanged, float32 as the unit reads it (10 bits of mantissa). The bias's gradient is a
    plain sum for float32, and the device's for bfloat16. x is (..., in), weight (out, in), bias (out) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arithmetic, ctx.has_bias = arithmetic, bias is not None
        return linear_result(x, weight, bias, arithmetic)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        dy = gradients[0].reshape(-1, weight.shape[0])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _product(dy, weight, None, ctx.arithmetic).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = _product(dy.T, x.reshape(-1, x.shape[-1]), None, ctx.arithmetic)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            in_bfloat16 = dy.dtype == torch.bfloat16
            db = stored.summed_to(dy, weight.shape[:1], ctx.arithmetic) if in_bfloat16 else dy.sum(dim=0)
        return dx, dw, db, None


class TtMatmul(torch.autograd.Function):
    """``TtMatmul.apply(a, b, arithmetic)``: a [..., m, k] @ b [..., k, n] in bfloat16. Leading dimensions are equal."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.arithmetic = arithmetic
        return stored.product(a, b, arithmetic)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        a, b = ctx.saved_tensors
        da = stored.product(gradients[0], b.transpose(-1, -2), ctx.arithmetic) if ctx.needs_input_grad[0] else None
        db = stored.product(a.transpose(-1, -2), gradients[0], ctx.arithmetic) if ctx.needs_input_grad[1] else None
        return da, db, None


class TtAdd(torch.autograd.Function):
    """``TtAdd.apply(a, b, arithmetic, subtract)``: a + b, or a - b, in bfloat16 with torch's broadcasting."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, arithmetic: Arithmetic, subtract: bool) -> torch.Tensor:
        ctx.shapes, ctx.arithmetic, ctx.subtract = (a.shape, b.shape), arithmetic, subtract
        wide_a, wide_b = torch.broadcast_tensors(a, b)
        return stored.add(wide_a, wide_b, arithmetic, subtract)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        da, db = (
            stored.summed_to(gradients[0], shape, ctx.arithmetic) if needed else None
            for shape, needed in zip(ctx.shapes, ctx.needs_input_grad, strict=False)
        )
        return da, -db if ctx.subtract and db is not None else db, None, None


class TtSoftmax(torch.autograd.Function):
    """``TtSoftmax.apply(x, arithmetic)``: softmax of bfloat16 values over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        y = stored.softmax(x, arithmetic)
        ctx.save_for_backward(y)
        ctx.arithmetic = arithmetic
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        (y,) = ctx.saved_tensors
        return stored.softmax_gradient(gradients[0], y, ctx.arithmetic), None


class TtLayerNorm(torch.autograd.Function):
    """``TtLayerNorm.apply(x, weight, bias, eps, arithmetic)``: over the last dimension, everything bfloat16."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, arithmetic: Arithmetic
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.arithmetic = eps, arithmetic
        return stored.layer_norm(x, weight, bias, eps, arithmetic)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        return *stored.layer_norm_gradients(gradients[0], x, weight, ctx.eps, ctx.arithmetic), None, None


class TtFunction(torch.autograd.Function):
    """``TtFunction.apply(x, name, arithmetic)``: one of `unary.FUNCTIONS` of each bfloat16 value."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str, arithmetic: Arithmetic) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.name = name
        return stored.function(name, x, arithmetic)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        return stored.function_gradient(ctx.name, gradients[0], x), None, None


class TtEmbedding(torch.autograd.Function):
    """``TtEmbedding.apply(ids, weight, padding_idx, arithmetic)``: rows of a float32 table, copied as bfloat16."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding_idx: int | None, arithmetic: Arithmetic
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx, ctx.arithmetic = weight.shape, padding_idx, arithmetic
        return stored.rounded(functional.embedding(ids, weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        (ids,), dy = ctx.saved_tensors, gradients[0]
        rows, sums = stored.rows_added(ids.flatten(), dy.reshape(-1, dy.shape[-1]), ctx.arithmetic)
        dw = torch.zeros(ctx.shape, device=dy.device)
        dw[rows] = sums.to(torch.float32)
        if ctx.padding_idx is not None:
            dw[ctx.padding_idx] = 0.0
        return None, dw, None, None


class TtFork(torch.autograd.Function):
    """``TtFork.apply(x, arithmetic)``: x twice. The device adds the gradients of its two uses."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.arithmetic = arithmetic
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Gradients:
        first, second = gradients
        if first is None or second is None:
            return second if first is None else first, None
        return stored.add(first, second, ctx.arithmetic), None


def linear_result(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic
) -> torch.Tensor:
    """What `TtLinear` computes forward."""
    return _product(x.reshape(-1, x.shape[-1]), weight.T, bias, arithmetic).view(*x.shape[:-1], weight.shape[0])


def _product(in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic) -> torch.Tensor:
    """in0 @ in1 + bias as a tensor of in0's dtype: bfloat16, or float32 with the precision that the unit keeps.

    Operands of another dtype, or with an infinity or a NaN, are multiplied by torch (see `stored`).
    """
    given = (in0, in1) if bias is None else (in0, in1, bias)
    if in0.dtype not in (torch.bfloat16, torch.float32) or not stored.finite(*given):
        return functional.linear(in0, in1.T.to(in0.dtype), None if bias is None else bias.to(in0.dtype))
    if in0.dtype == torch.bfloat16:
        # The other operand may be a float32 master weight.
        in1 = host_convert(in1, "bfloat16")
        bias = None if bias is None else host_convert(bias, "bfloat16")
        return linear(in0.to(torch.float32), in1, bias, arithmetic).to(torch.bfloat16)
    return linear(in0, in1.to(torch.float32), bias, arithmetic, out_dtype="float32")
