"""The operations of a training step on bfloat16 tensors, each result rounded to bfloat16 as the device stores it.

Products and sums are the matrix unit's. Functions of one value are the vector unit's. In exact mode they have the bits
of the vendor's kernels where vectors prove an algorithm (products, sums, functions), in fast mode their error.

With an infinite or NaN operand, a result is torch's own: no vector shows the device's, and a run that diverges must be
seen.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch

from . import fast, ops
from .arithmetic import Arithmetic
from .formats import bits_of, device_pack, from_bits
from .linear import add as add_exactly
from .linear import linear
from .unary import FUNCTIONS, unary

BF16 = torch.bfloat16


def finest(arithmetic: Arithmetic) -> Arithmetic:
    """The arithmetic of LayerNorm, softmax and sums: that of products, but at HiFi4."""
    return replace(arithmetic, math_fidelity="hifi4")


def finite(*operands: torch.Tensor) -> bool:
    """Whether no operand has an infinity or a NaN."""
    # The extremes take one pass over an operand, and NaN is both.
    return all(bool(torch.stack(torch.aminmax(operand)).isfinite().all()) for operand in operands if operand.numel())


def rounded(x: torch.Tensor) -> torch.Tensor:
    """`x` as the host stores it: bfloat16."""
    return x.to(BF16)


def add(a: torch.Tensor, b: torch.Tensor, arithmetic: Arithmetic, subtract: bool = False) -> torch.Tensor:
    """a + b, or a - b, of one shape."""
    a, b = a.to(torch.float32), b.to(torch.float32)
    if arithmetic.mode == "exact" and finite(a, b):
        return add_exactly(a, b, subtract=subtract, arch=arithmetic.arch).to(BF16)
    return rounded(a - b if subtract else a + b)


def product(a: torch.Tensor, b: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """a [..., m, k] @ b [..., k, n] with the same leading dimensions."""
    a, b = a.to(torch.float32), b.to(torch.float32)
    if not finite(a, b):
        return rounded(a @ b)
    if a.ndim == 2:
        return linear(a, b, None, arithmetic).to(BF16)
    return ops.each(a, b, arithmetic).to(BF16) if arithmetic.mode == "exact" else rounded(fast.matmul(a, b, arithmetic))


def row_sums(x: torch.Tensor, arithmetic: Arithmetic, scale: float = 1.0) -> torch.Tensor:
    """The sum of each row of x [..., width] times `scale`, [..., 1]."""
    arithmetic, fp32 = finest(arithmetic), arithmetic.fp32_dest_acc_en
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(torch.float32)
    # A float32 Dst is scaled by the vector unit, and a bfloat16 one by the product itself, as in LayerNorm.
    inside, after = (1.0, scale) if fp32 else (scale, 1.0)
    if not finite(rows):
        return rounded(rows.sum(dim=-1, keepdim=True) * scale).view(*x.shape[:-1], 1)
    if arithmetic.mode == "exact":
        sums = ops.reduce_rows(rows, inside, "hifi4", fp32_dest=fp32, arch=arithmetic.arch)
    else:
        sums = fast.matmul(rows, rows.new_full((rows.shape[1], 1), inside), arithmetic)
    packed = device_pack(sums * torch.tensor(after) if fp32 else sums, "bfloat16", fp32_dest=fp32)
    return packed.to(BF16).view(*x.shape[:-1], 1)


def summed_to(x: torch.Tensor, shape: torch.Size, arithmetic: Arithmetic) -> torch.Tensor:
    """The sum of `x` over the dimensions along which `shape` was broadcast to x's shape."""
    padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
    kept = [place for place in range(x.ndim) if padded[place] == x.shape[place]]
    gone = [place for place in range(x.ndim) if place not in kept]
    return row_sums(x.permute(*kept, *gone).flatten(len(kept)), arithmetic).reshape(shape) if gone else x.reshape(shape)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, arithmetic: Arithmetic
) -> torch.Tensor:
    """LayerNorm over the last dimension; weight and bias are [width]."""
    x, weight, bias = x.to(torch.float32), weight.to(torch.float32), bias.to(torch.float32)
    if not finite(x, weight, bias):
        return rounded(torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps))
    return ops.layer_norm(x, weight, bias, eps, finest(arithmetic)).to(BF16)


def layer_norm_gradients(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, arithmetic: Arithmetic
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias, by the usual formula, one stored operation after the other."""
    share = 1.0 / x.shape[-1]
    centred = add(x, row_sums(x, arithmetic, share).expand_as(x), arithmetic, subtract=True)
    variance = row_sums(centred * centred, arithmetic, share)
    scale = function("rsqrt", add(variance, torch.full_like(variance, eps), arithmetic), arithmetic)
    normed = centred * scale
    slope = dy * weight
    along = normed * row_sums(slope * normed, arithmetic, share)
    level = add(slope, row_sums(slope, arithmetic, share).expand_as(slope), arithmetic, subtract=True)
    dx = add(level, along, arithmetic, subtract=True) * scale
    return dx, summed_to(dy * normed, weight.shape, arithmetic), summed_to(dy, weight.shape, arithmetic)


def softmax(x: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """Softmax over the last dimension, with the accurate exponential."""
    x = x.to(torch.float32)
    return ops.softmax(x, finest(arithmetic)).to(BF16) if finite(x) else rounded(torch.softmax(x, dim=-1))


def softmax_gradient(dy: torch.Tensor, y: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """The gradient of softmax's input from its result y: y (dy - sum(dy y))."""
    total = row_sums(dy * y, arithmetic)
    return y * add(dy, total.expand_as(dy), arithmetic, subtract=True)


def function(name: str, x: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """A function of each value, one of `unary.FUNCTIONS`."""
    if arithmetic.mode == "exact":
        return unary(name, x).to(BF16)
    return rounded(FUNCTIONS[name](x.to(torch.float32)))


def function_gradient(name: str, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dy times the function's derivative at x, the derivative rounded to bfloat16 first."""
    return dy * _derivatives(name).to(x.device)[bits_of(x) >> 16]


def rows_added(ids: torch.Tensor, dy: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of an embedding: which rows were looked up, and for each the sum of its dy [tokens, width].

    It is a product with a matrix of ones and zeros.
    """
    rows, places = torch.unique(ids, return_inverse=True)
    ones = torch.nn.functional.one_hot(places, len(rows)).T.to(BF16)
    return rows, product(ones, dy, finest(arithmetic))


@cache
def _derivatives(name: str) -> torch.Tensor:
    """The derivative at every bfloat16 value, bfloat16 [65536], from float64."""
    with torch.enable_grad():
        x = from_bits(torch.arange(1 << 16) << 16).to(torch.float64).requires_grad_()
        (found,) = torch.autograd.grad(FUNCTIONS[name](x).sum(), x)
    return found.to(BF16)
