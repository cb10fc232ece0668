"""How the matrix unit computes a product: the vendor's compute-kernel options, and the resulting blocks of K."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import UserError
from . import model, native

MODES = ("fast", "exact")
TILE = 32


@dataclass(frozen=True)
class Arithmetic:
    """How products are computed: the vendor's compute-kernel options, under their names.

    Attributes:
        arch: wormhole or blackhole.
        math_fidelity: lofi, hifi2, hifi3 or hifi4: 1 to 4 passes over parts of the mantissas.
        fp32_dest_acc_en: Dst holds float32, else bfloat16.
        packer_l1_acc: Blocks are added up in L1.
        block_tiles: Tiles of K in a block (ttnn takes 2 for M = 32 and 3 for M = 64 and 128 at K = 768); 0 is one
            block.
        mode: exact, or fast (the same error, other bits; with a bfloat16 Dst on the host the products are exact).
        gemm_dtype: The operands' dtype in fast mode: bfloat16 where the device multiplies it natively, else float32.

    Raises:
        UserError: An unknown value.
    """

    arch: str = "wormhole"
    math_fidelity: str = "hifi4"
    fp32_dest_acc_en: bool = True
    packer_l1_acc: bool = True
    block_tiles: int = 2
    mode: str = "fast"
    gemm_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, allowed in (
            ("arch", native.ARCHITECTURES),
            ("math_fidelity", tuple(model.PHASES)),
            ("mode", MODES),
            ("gemm_dtype", (torch.float32, torch.bfloat16)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} {getattr(self, name)!r} is unknown; allowed are {', '.join(map(str, allowed))}"
                )
        if self.block_tiles < 0:
            raise UserError(f"block_tiles is {self.block_tiles}; it must be at least 1, or 0 for one block")

    @property
    def phases(self) -> int:
        return model.PHASES[self.math_fidelity]

    @property
    def label(self) -> str:
        """The name in tables, such as ``wormhole hifi4 fp32 dst, fast``."""
        dest = "fp32" if self.fp32_dest_acc_en else "bf16"
        return f"{self.arch} {self.math_fidelity} {dest} dst, {self.mode}"


def k_blocks(k: int, block_tiles: int) -> list[slice]:
    """K cut into blocks of `block_tiles` tiles; 0 gives one block. A K of 0 is one empty block."""
    step = block_tiles * TILE or max(1, k)
    return [slice(start, min(start + step, k)) for start in range(0, max(1, k), step)]
