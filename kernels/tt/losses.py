"""What weights lose in each Tenstorrent format, and in the bits that a math fidelity reads of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..names import check_name
from .formats import GROUP, MAGNITUDE_BITS, WEIGHT_DTYPES, check_dtype, host_convert, truncate

# Mantissa bits of a weight (in1) that the phases of a fidelity read: the upper 5 for LoFi, 10 of 11 for all others.
READ_BITS = {"lofi": 4, "hifi2": 9, "hifi3": 9, "hifi4": 9}
BLOCK_AXES = ("first", "last")


@dataclass(frozen=True)
class TensorLoss:
    """One tensor in one format, as one fidelity reads it.

    Attributes:
        relative_rms: RMS of the error / RMS of the values. 0 for a tensor of zeros that stays zero.
        max_abs: The largest error.
        saturated: Values above the largest of the format in their block (bfp) or at all.
        flushed: Values that became 0 but weren't.
        values: The number of finite values.
        non_finite: The number of the others, which are not counted elsewhere.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    fidelity: str
    values: int
    non_finite: int
    relative_rms: float
    max_abs: float
    saturated: int
    flushed: int


def format_losses(
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtypes: Iterable[str] = WEIGHT_DTYPES,
    fidelities: Iterable[str] = tuple(READ_BITS),
    block_axis: str = "first",
) -> Iterator[TensorLoss]:
    """What is lost for every tensor, format and fidelity. Tensors that are not floating point are skipped.

    Args:
        tensors: (name, tensor) pairs.
        dtypes: The formats.
        fidelities: The math fidelities.
        block_axis: The dimension along which 16 neighbours share an exponent: "first" for torch's linear weights (out,
            in), which ttnn.linear stores as (in, out); "last" for arrays in the device's own order.

    Raises:
        UserError: An unknown format, fidelity or axis.
    """
    dtypes, fidelities = [check_dtype(dtype) for dtype in dtypes], list(fidelities)
    for fidelity in fidelities:
        check_name("math_fidelity", fidelity, READ_BITS)
    check_name("block axis", block_axis, BLOCK_AXES)
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        matrix = tensor.detach().to("cpu", torch.float32)
        if block_axis == "first" and matrix.ndim >= 2:
            matrix = matrix.transpose(0, -1)
        finite = torch.isfinite(matrix)
        clean = torch.where(finite, matrix, 0.0).contiguous()
        for dtype in dtypes:
            stored = host_convert(clean, dtype)
            saturated = _saturated(clean, stored, dtype)
            read: dict[int, tuple[float, float, int]] = {}
            for fidelity in fidelities:
                bits = READ_BITS[fidelity]
                if bits not in read:
                    read[bits] = _errors(clean, truncate(stored, bits))
                rms, largest, flushed = read[bits]
                count = int(finite.sum())
                counts = count, matrix.numel() - count
                yield TensorLoss(name, tuple(tensor.shape), dtype, fidelity, *counts, rms, largest, saturated, flushed)


def _errors(exact: torch.Tensor, got: torch.Tensor) -> tuple[float, float, int]:
    """Relative RMS, largest error, and the number of values that became 0. An overflow makes the first two infinite."""
    error = got.double() - exact.double()
    norm = float(exact.double().square().sum())
    lost = float(error.square().sum())
    relative = math.sqrt(lost / norm) if norm else 0.0
    return relative, float(error.abs().max()), int(((got == 0) & (exact != 0)).sum())


def _saturated(exact: torch.Tensor, stored: torch.Tensor, dtype: str) -> int:
    if dtype == "bfloat16":
        return int(torch.isinf(stored).sum())
    width = exact.shape[-1] if exact.ndim else 1
    grouped = torch.nn.functional.pad(exact.reshape(-1, width), (0, -width % GROUP)).unflatten(-1, (-1, GROUP))
    largest = truncate(grouped.abs().amax(dim=-1, keepdim=True), 0)
    # Halfway between the largest code and the next one, which doesn't exist.
    limit = largest.double() * (2.0 - 2.0 ** -MAGNITUDE_BITS[dtype])
    return int(((grouped.abs().double() >= limit) & (largest > 0)).sum())
