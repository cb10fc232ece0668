"""Reductions, layer_norm, softmax and attention composed of the matrix unit's instructions.

The compositions are those of the vendor's kernels, found from their sources and the golden outputs, which LayerNorm,
softmax and reductions reproduce bit for bit with Wormhole's vector unit. Attention is not ttnn's fused kernel
(tests/golden/tt/README.md). In exact mode, values are float32 on the host. Fast mode computes in float32 and rounds to
bfloat16 where the device stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from . import fast, native, vector
from .formats import device_pack, host_convert, truncate
from .linear import add, linear, multiply, multiply_bf16, packed
from .unary import unary

if TYPE_CHECKING:
    from .arithmetic import Arithmetic


def reduce_rows(
    x: torch.Tensor, scale: float, fidelity: str, *, fp32_dest: bool, arch: str = "wormhole"
) -> torch.Tensor:
    """The sum of each row of x [rows, width] times `scale`, [rows, 1], as a product with a column of the scale."""
    return native.matmul(x, torch.full((x.shape[1], 1), scale), fidelity, fp32_dest=fp32_dest, arch=arch)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, arithmetic: Arithmetic
) -> torch.Tensor:
    """LayerNorm of bfloat16 values over the last dimension: mean, x - mean, square, mean, rsqrt, gamma, beta.

    x is [rows, width], weight and bias [width]. Results are bfloat16 values in float32, in fast mode in x's dtype.
    """
    if arithmetic.mode == "fast":
        if not arithmetic.fp32_dest_acc_en:
            return _rounding_layer_norm(x, weight, bias, eps, arithmetic)
        y = functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
        return y if x.dtype == torch.bfloat16 else host_convert(y, "bfloat16")
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    fp32, arch, fidelity = arithmetic.fp32_dest_acc_en, arithmetic.arch, arithmetic.math_fidelity
    centred = add(x, _row_means(x, arithmetic).expand_as(x), fp32, subtract=True, arch=arch)
    variance = _row_means(multiply(centred, centred, fidelity, fp32, arch), arithmetic)
    variance = add(variance, host_convert(torch.full_like(variance, eps), "bfloat16"), fp32, arch=arch)
    scale = _on_vector_unit(vector.rsqrt, variance, arithmetic) if fp32 else unary("rsqrt", variance)
    y = multiply(centred, scale.expand_as(x), fidelity, fp32, arch)
    y = multiply(y, weight.to(torch.float32).expand_as(x), fidelity, fp32, arch)
    y = add(y, bias.to(torch.float32).expand_as(x), fp32, arch=arch)
    return device_pack(y, "bfloat16", fp32_dest=fp32).reshape(shape)


def _rounding_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, arithmetic: Arithmetic
) -> torch.Tensor:
    """The fast form of `layer_norm` with a bfloat16 Dst. The result of each step is rounded to bfloat16."""
    dtype, x = x.dtype, x.to(torch.float32)
    column = x.new_full((x.shape[-1], 1), 1.0 / x.shape[-1])

    def stored(value: torch.Tensor) -> torch.Tensor:
        return host_convert(value, "bfloat16")

    centred = stored(x - fast.matmul(x, column, arithmetic))
    variance = fast.matmul(stored(centred * centred), column, arithmetic)
    y = stored(centred * unary("rsqrt", stored(variance + eps)))
    return stored(stored(y * weight.to(torch.float32)) + bias.to(torch.float32)).to(dtype)


def softmax(x: torch.Tensor, arithmetic: Arithmetic, approximate: bool = False) -> torch.Tensor:
    """Softmax of bfloat16 values over the last dimension, shifted by the row's maximum.

    `approximate` uses the vector unit's fast exp, which is ttnn's default (its error is ten times as large).
    """
    fp32, fidelity = arithmetic.fp32_dest_acc_en, arithmetic.math_fidelity
    if arithmetic.mode == "fast" and fp32 and not approximate:
        y = torch.softmax(x, dim=-1)
        return y if x.dtype == torch.bfloat16 else host_convert(y, "bfloat16")
    shape, dtype, x = x.shape, x.dtype, x.reshape(-1, x.shape[-1]).to(torch.float32)
    exponential = "exp_fast" if approximate else "exp"
    if arithmetic.mode == "fast":
        e = unary(exponential, host_convert(x - x.amax(dim=-1, keepdim=True), "bfloat16"))
        total = fast.matmul(e, e.new_ones(e.shape[-1], 1), arithmetic)
        reciprocal = 1.0 / total if fp32 else host_convert(1.0 / total, "bfloat16")
        return host_convert(e * reciprocal, "bfloat16").reshape(shape).to(dtype)
    shifted = add(x, x.amax(dim=-1, keepdim=True).expand_as(x), fp32, subtract=True, arch=arithmetic.arch)
    if approximate:
        # ttnn's default, a float32 Dst, computes at HiFi3 and stores the exponentials in bfloat16.
        fidelity = "hifi3" if fp32 else fidelity
        e = packed(_on_vector_unit(vector.fast_exp, shifted, arithmetic), arithmetic, "bfloat16")
        e = e if fp32 else truncate(e, 7)
        reciprocal = _on_vector_unit(vector.reciprocal, _row_sums(e, fidelity, arithmetic), arithmetic, 1 + fp32)
        reciprocal = reciprocal if fp32 else truncate(reciprocal, 7)
    elif fp32:
        e = torch.exp(shifted)
        reciprocal = 1.0 / _row_sums(e, fidelity, arithmetic)
    else:
        e = unary("exp", shifted)
        reciprocal = unary("recip", _row_sums(e, fidelity, arithmetic))
    y = multiply(e, reciprocal.expand_as(e), fidelity, fp32, arithmetic.arch)
    return device_pack(y, "bfloat16", fp32_dest=fp32).reshape(shape)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    arithmetic: Arithmetic,
    approximate: bool = False,
    float32: frozenset[str] = frozenset(),
) -> torch.Tensor:
    """softmax(query @ key^T / sqrt(width)) @ value for bfloat16 values [..., length, width], without a mask.

    Composed as by a compiler without a fused kernel: product, scale (bfloat16), softmax (at HiFi4), product. `float32`
    may name "matmul" and "softmax", which the host then computes in float32 without rounding.
    """
    finest = replace(arithmetic, math_fidelity="hifi4")
    scale = 1.0 / math.sqrt(query.shape[-1])
    is_fast = arithmetic.mode == "fast"
    if is_fast and arithmetic.fp32_dest_acc_en and arithmetic.math_fidelity == "hifi4" and not (approximate or float32):
        return _rounded(functional.scaled_dot_product_attention(query, key, value), query.dtype)
    if "matmul" in float32:
        scores = query.to(torch.float32) @ key.to(torch.float32).transpose(-1, -2) * scale
    elif is_fast:
        scores = _rounded(fast.matmul(query, key.transpose(-1, -2), arithmetic) * scale, query.dtype)
    else:
        rounded = host_convert(torch.tensor([scale]), "bfloat16")
        scores = multiply_bf16(each(query, key.transpose(-1, -2), arithmetic), rounded)
    if "softmax" in float32:
        shares = torch.softmax(scores.to(torch.float32), dim=-1)
    else:
        shares = softmax(_rounded(scores, query.dtype), finest, approximate)
    if "matmul" in float32:
        return shares.to(torch.float32) @ value.to(torch.float32)
    shares = _rounded(shares, query.dtype)
    return _rounded(fast.matmul(shares, value, arithmetic), query.dtype) if is_fast else each(shares, value, arithmetic)


def each(a: torch.Tensor, b: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """a @ b for every leading index, exactly."""
    left, right = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    products = [linear(x, y, None, arithmetic) for x, y in zip(left, right, strict=True)]
    return torch.stack(products).reshape(*a.shape[:-1], b.shape[-1])


def _rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return host_convert(x, "bfloat16").to(dtype)


def _row_sums(x: torch.Tensor, fidelity: str, arithmetic: Arithmetic) -> torch.Tensor:
    return reduce_rows(x, 1.0, fidelity, fp32_dest=arithmetic.fp32_dest_acc_en, arch=arithmetic.arch)


def _row_means(x: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """A float32 Dst divides the sum by the width, and a bfloat16 Dst adds up values that are divided by it."""
    if arithmetic.fp32_dest_acc_en:
        return _row_sums(x, arithmetic.math_fidelity, arithmetic) * torch.tensor(1.0 / x.shape[1])
    return reduce_rows(x, 1.0 / x.shape[1], arithmetic.math_fidelity, fp32_dest=False, arch=arithmetic.arch)


def _on_vector_unit(
    function: Callable[..., np.ndarray], x: torch.Tensor, arithmetic: Arithmetic, *options: int
) -> torch.Tensor:
    """A function of `vector` of float32 values on the host."""
    return torch.from_numpy(function(x.contiguous().numpy(), arithmetic.arch, *options))
