"""The matrix unit's arithmetic by ordinary GEMMs on any torch device: the device's error, but not its bits.

With T(x, k) = x with k mantissa bits kept by truncation, the phases of a fidelity are products of truncated operands.
For bfloat16 and block-format operands, each operand is exact in bfloat16. One bfloat16 GEMM with float32 sums therefore
does a whole layer (HiFi3's two products stand side by side in K). A bfloat16 Dst rounds at every 16-deep slice of K. No
single GEMM does that (it halves the error), so the slices are looped over. The exact unit in C++ is faster and computes
for a bfloat16 Dst wherever it can. The loop is for other devices.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from . import native
from .arithmetic import Arithmetic
from .formats import device_pack, host_convert, round_half_away_bf16, truncate

SLICE = 16
GROUP = 8


def linear(
    in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic, out_dtype: str
) -> torch.Tensor:
    """See `linear.linear`; operands [m, k] and [k, n] in float32."""
    return FastWeight(in1, bias, arithmetic)(in0, out_dtype)


class FastWeight:
    """A weight [k, n] and bias [n], truncated and laid out once for many products."""

    def __init__(self, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.bias = None if bias is None else bias.to(torch.float32)
        in1 = in1.to(torch.float32)
        if arithmetic.fp32_dest_acc_en:
            sides = [weight for _, weight in _operands(in1[:0].reshape(0, in1.shape[0]), in1, arithmetic.math_fidelity)]
            self._weight = torch.cat(sides).T.contiguous().to(arithmetic.gemm_dtype)
            self._gemm_bias = None if self.bias is None else self.bias.to(arithmetic.gemm_dtype)
        else:
            self._weight = in1

    def __call__(self, in0: torch.Tensor, out_dtype: str = "bfloat16") -> torch.Tensor:
        if not self.arithmetic.fp32_dest_acc_en:
            return _rounding_dest(in0.to(torch.float32), self._weight, self.bias, self.arithmetic, out_dtype)
        if in0.dtype == torch.float32:
            in0 = truncate(in0, 10)
        sides = [x for x, _ in _operands(in0, None, self.arithmetic.math_fidelity)]
        x = (sides[0] if len(sides) == 1 else torch.cat(sides, dim=1)).to(self._weight.dtype)
        if out_dtype == "bfloat16" and self._weight.dtype == torch.bfloat16:
            # The GEMM adds the bias in float32 and rounds once, halves to even. The packer rounds them away from 0.
            return functional.linear(x, self._weight, self._gemm_bias)
        dest = functional.linear(x, self._weight).to(torch.float32)
        if self.bias is not None:
            dest = truncate(dest, 10) + truncate(self.bias, 10)
        if out_dtype == "float32":
            return dest
        return device_pack(dest, out_dtype, fp32_dest=True)


def matmul(in0: torch.Tensor, in1: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """The contents of Dst after in0 [..., m, k] @ in1 [..., k, n], with k as one block: float32 [..., m, n]."""
    if not arithmetic.fp32_dest_acc_en and native.serves(in0):
        left, right = in0.reshape(-1, *in0.shape[-2:]), in1.expand(*in0.shape[:-2], *in1.shape[-2:])
        products = [
            native.matmul(x, w, arithmetic.math_fidelity, fp32_dest=False, arch=arithmetic.arch)
            for x, w in zip(left, right.reshape(-1, *in1.shape[-2:]), strict=True)
        ]
        return torch.stack(products).reshape(*in0.shape[:-1], in1.shape[-1])
    if not arithmetic.fp32_dest_acc_en:
        pairs = _phase_operands(in0.to(torch.float32), in1.to(torch.float32), arithmetic.phases)
        zeros = pairs[0][0].new_zeros(*in0.shape[:-1], in1.shape[-1])
        return _chain(zeros, pairs, slice(0, in0.shape[-1]))
    pairs = _operands(in0.to(torch.float32), in1.to(torch.float32), arithmetic.math_fidelity)
    return torch.stack([x @ w for x, w in pairs]).sum(dim=0) if len(pairs) > 1 else pairs[0][0] @ pairs[0][1]


def _operands(in0: torch.Tensor, in1: torch.Tensor | None, fidelity: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of truncated operands with the products that make up a fidelity. in1 None gives in0's side only."""
    weight = in0.new_zeros(0) if in1 is None else in1
    if fidelity == "hifi4":
        return [(in0, truncate(weight, 9))]
    upper = truncate(in0, 6).to(in0.dtype)
    if fidelity == "lofi":
        return [(upper, truncate(weight, 4))]
    if fidelity == "hifi2":
        return [(upper, truncate(weight, 9))]
    return [(upper, truncate(weight, 9)), (in0 - upper, truncate(weight, 4))]


def _phase_operands(in0: torch.Tensor, in1: torch.Tensor, phases: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The operands of each phase (upper and lower parts of both mantissas) in the device's order."""
    upper0, upper1 = truncate(in0, 6), truncate(in1, 4)
    lower0, lower1 = in0 - upper0, truncate(in1, 9) - upper1
    return [(upper0, upper1), (upper0, lower1), (lower0, upper1), (lower0, lower1)][:phases]


def _rounding_dest(
    in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic, out_dtype: str
) -> torch.Tensor:
    """A layer with a bfloat16 Dst. The two groups of a slice are rounded to Dst's grid before they are added."""
    blocks = [slice(0, in0.shape[1])]
    if arithmetic.packer_l1_acc:
        blocks = arithmetic.k_blocks(in0.shape[0], in0.shape[1], in1.shape[1])
    pairs = _phase_operands(in0, in1, arithmetic.phases)
    sums: torch.Tensor | None = None
    for index, part in enumerate(blocks, start=1):
        reload = bias is None and index == len(blocks) and sums is not None
        dest = sums if reload and sums is not None else in0.new_zeros(in0.shape[0], in1.shape[1])
        dest = _chain(dest, pairs, part)
        sums = dest if sums is None or reload else host_convert(sums + dest, "bfloat16")
    assert sums is not None
    if bias is not None:
        sums = round_half_away_bf16(sums + bias)
    return device_pack(sums, out_dtype, fp32_dest=False) if out_dtype != "float32" else sums


def _chain(dest: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor]], part: slice) -> torch.Tensor:
    """Dst plus the products of one block of K. All phases of a 32-wide tile come before the next tile."""
    for tile in range(part.start, part.stop, 2 * SLICE):
        for x, w in pairs:
            for start in range(tile, min(tile + 2 * SLICE, part.stop), SLICE):
                dest = _add_slice(dest, x, w, start, min(start + SLICE, part.stop))
    return dest


def _add_slice(dest: torch.Tensor, x: torch.Tensor, w: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    middle = min(start + GROUP, stop)
    parts = [x[..., start:middle] @ w[..., start:middle, :]]
    if middle < stop:
        parts.append(x[..., middle:stop] @ w[..., middle:stop, :])
    largest = dest.abs()
    for part in parts:
        largest = torch.maximum(largest, part.abs())
    # 2^(e - 10), where e is the exponent of the largest. Below the smallest normal number there is nothing to round.
    unit = truncate(largest, 0) * 2.0**-10
    grid = torch.where(unit > 0, unit, 1.0)
    for part in parts:
        dest = dest + torch.round(part / grid) * grid
    return round_half_away_bf16(dest)
