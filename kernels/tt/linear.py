"""``ttnn.linear`` and the element-wise operations of the matrix unit, bit for bit (exact) or by GEMMs (fast).

A linear layer runs in blocks of K (`arithmetic.ttnn_block_tiles`). Dst starts at 0 for each block, and its result is
added to the sums in L1, so the size of a block changes the bits.
"""

from __future__ import annotations

import torch

from . import fast, native
from .arithmetic import Arithmetic
from .formats import check_dtype, device_pack, host_convert
from .unary import unary


def linear(
    in0: torch.Tensor,
    in1: torch.Tensor,
    bias: torch.Tensor | None,
    arithmetic: Arithmetic,
    out_dtype: str = "bfloat16",
    activation: str | None = None,
) -> torch.Tensor:
    """in0 [m, k] @ in1 [k, n] + bias [n], as float32 values of `out_dtype` (float32, bfloat16, bfp_bf8, bfp_bf4).

    Operands are already converted to their formats. `activation` is a function of `unary` on a bfloat16 result.
    """
    # The exact unit is also the faster one if every slice is rounded.
    exact = arithmetic.mode == "exact" or (not arithmetic.fp32_dest_acc_en and native.serves(in0))
    if not exact:
        out = fast.linear(in0, in1, bias, arithmetic, out_dtype)
    else:
        out = packed(_dest(in0, in1, bias, arithmetic), arithmetic, out_dtype).to(in0.device)
    return out if activation is None else unary(activation, out)


def packed(dest: torch.Tensor, arithmetic: Arithmetic, out_dtype: str) -> torch.Tensor:
    """The contents of Dst as the packer writes them."""
    if out_dtype == "float32":
        return dest
    return device_pack(dest, check_dtype(out_dtype), fp32_dest=arithmetic.fp32_dest_acc_en)


def add(
    a: torch.Tensor, b: torch.Tensor, fp32_dest: bool = False, subtract: bool = False, arch: str = "wormhole"
) -> torch.Tensor:
    """a + b (or a - b) by ELWADD, both of one shape: the contents of Dst, float32."""
    operation = "subtract" if subtract else "add"
    return native.elementwise(operation, a, b, fp32_dest=fp32_dest, arch=arch).to(a.device)


def multiply(
    a: torch.Tensor, b: torch.Tensor, fidelity: str = "hifi4", fp32_dest: bool = False, arch: str = "wormhole"
) -> torch.Tensor:
    """a * b by ELWMUL (a in SrcA), both of one shape: the contents of Dst, float32.

    ``ttnn.mul`` uses this for bfp8_b. Its bfloat16 product is one of the vector unit (`multiply_bf16`).
    """
    return native.elementwise("multiply", a, b, fidelity, fp32_dest=fp32_dest, arch=arch).to(a.device)


def multiply_bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``ttnn.mul`` of bfloat16 values: the product rounded to nearest even."""
    return host_convert(a * b, "bfloat16")


def _dest(in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, arithmetic: Arithmetic) -> torch.Tensor:
    """The contents of Dst at the end of the layer, float32 [m, n] on the host."""
    fp32 = arithmetic.fp32_dest_acc_en

    def product(part: slice, dst: torch.Tensor | None = None) -> torch.Tensor:
        return native.matmul(
            in0[:, part], in1[part], arithmetic.math_fidelity, fp32_dest=fp32, arch=arithmetic.arch, dst=dst
        )

    # Without sums in L1, Dst is spilled to it and read back without loss.
    blocks = [slice(0, in0.shape[1])]
    if arithmetic.packer_l1_acc:
        blocks = arithmetic.k_blocks(in0.shape[0], in0.shape[1], in1.shape[1])
    sums = product(blocks[0])
    for index, part in enumerate(blocks[1:], start=2):
        if bias is None and index == len(blocks):
            return product(part, sums)
        sums = sums + product(part)
        if not fp32:
            sums = sums.to(torch.bfloat16).to(torch.float32)
    return sums if bias is None else add(sums, bias.to(sums.device).expand_as(sums), fp32, arch=arithmetic.arch)
