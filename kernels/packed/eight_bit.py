"""Linear layers that multiply 8-bit numbers, for frozen encoders: a scale for each output channel and for each token.

Weights are rounded once. A row of activations is rounded when a layer reads it, with its largest magnitude at the
format's largest number. Products are summed in int32 (int8, exactly) or float32 (float8), then scaled back. Sources:
Dettmers et al. 2022 (2208.07339, vector-wise scales), Micikevicius et al. 2022 (2209.05433, E4M3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from ... import UserError
from ..weights import EncoderConfig
from .portable import Linear, MakeLinear

# Rows of smaller values are stored as zeros, so that no factor is infinite. kernels/cpu/native/products.h has the same.
SMALLEST = 1e-30
# CUDA has these products for widths that are multiples of it, and for more rows.
CUDA_STEP = 16
# The widest product whose int32 sums can't overflow, with a factor of 2 to spare for unsigned activations.
WIDEST = 2**16


@dataclass(frozen=True)
class Format:
    """An 8-bit format of torch, and its largest number that is used."""

    dtype: torch.dtype
    largest: float


FORMATS = {"int8": Format(torch.int8, 127.0), "float8_e4m3": Format(torch.float8_e4m3fn, 448.0)}


def rounded_rows(x: torch.Tensor, form: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row by its own scale.

    Args:
        x: Floating point [rows, k].

    Returns:
        The rounded values [rows, k] in the format, and the scales [rows, 1], float32 or wider, by which they are
        multiplied. A row with a NaN or an infinity has the scale NaN.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(1, keepdim=True)
    finite = largest.isfinite()
    largest = largest.clamp(min=SMALLEST)
    values = torch.where(finite, wide * (form.largest / largest), 0.0)
    if not form.dtype.is_floating_point:
        values = values.round()
    return values.to(form.dtype), torch.where(finite, largest / form.largest, torch.nan)


def eight_bit_linear(dtype: str, config: EncoderConfig, *, exact: bool = False) -> MakeLinear:
    """Builds layers of the format `dtype`, one of FORMATS; with `exact`, products are computed in float64.

    Raises:
        UserError: Sums of an encoder of this shape don't fit into int32.
    """
    if config.intermediate_size > WIDEST:
        raise UserError(
            f"dtype {dtype} does not support intermediate_size {config.intermediate_size} (at most {WIDEST}); "
            "set dtype: bfloat16"
        )
    form, layer = FORMATS[dtype], _exact if exact else _fast

    def make(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        values, scale = rounded_rows(weight, form)
        return partial(layer, form=form, weight=values, scale=scale.T, bias=bias.float())

    return make


def uneven(config: EncoderConfig) -> str:
    """Why CUDA has no such products of this width, or an empty string."""
    for name in ("hidden_size", "intermediate_size", "embedding_size"):
        if getattr(config, name) % CUDA_STEP:
            return f"{name} {getattr(config, name)} (it must be a multiple of {CUDA_STEP})"
    return ""


def _exact(
    x: torch.Tensor, form: Format, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    rows, row_scale = rounded_rows(x, form)
    return rows.double() @ weight.double().T * scale * row_scale + bias


def _fast(x: torch.Tensor, form: Format, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows, row_scale = rounded_rows(x, form)
    missing = CUDA_STEP + 1 - len(x)
    if missing > 0:
        rows, row_scale = (functional.pad(one, (0, 0, 0, missing)) for one in (rows, row_scale))
    if form.dtype == torch.int8:
        y = torch._int_mm(rows, weight.T) * scale * row_scale + bias
    else:
        # CUDA has these scales for results in bfloat16 only.
        half = torch.bfloat16
        y = torch._scaled_mm(rows, weight.T, row_scale, scale, bias=bias.to(half), out_dtype=half)
    return y[: len(x)].to(x.dtype)
