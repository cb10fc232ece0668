"""How the matrix unit computes a product: the vendor's compute-kernel options, and the resulting blocks of K."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import UserError
from . import model, native

MODES = ("fast", "exact")
TILE = 32

# Of the grid of cores that ttnn spreads a product over, when it may use all.
GRID_COLUMNS = {"wormhole": 8, "blackhole": 13}


@dataclass(frozen=True)
class Arithmetic:
    """How products are computed: the vendor's compute-kernel options, under their names.

    Attributes:
        arch: wormhole or blackhole.
        math_fidelity: lofi, hifi2, hifi3 or hifi4: 1 to 4 passes over parts of the mantissas.
        fp32_dest_acc_en: Dst holds float32, else bfloat16.
        packer_l1_acc: Blocks are added up in L1.
        block_tiles: Tiles of K in a block; 0 is one block, None what ttnn takes for the shape (`ttnn_block_tiles`).
        mode: exact, or fast (the same error, other bits; with a bfloat16 Dst on the host the products are exact).
        gemm_dtype: The operands' dtype in fast mode: bfloat16 where the device multiplies it natively, else float32.

    Raises:
        UserError: An unknown value.
    """

    arch: str = "wormhole"
    math_fidelity: str = "hifi4"
    fp32_dest_acc_en: bool = True
    packer_l1_acc: bool = True
    block_tiles: int | None = None
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
        if self.block_tiles is not None and self.block_tiles < 0:
            raise UserError(f"block_tiles is {self.block_tiles}; it must be at least 1, or 0 for one block")

    @property
    def phases(self) -> int:
        return model.PHASES[self.math_fidelity]

    @property
    def label(self) -> str:
        """The name in tables, such as ``wormhole hifi4 fp32 dst, fast``."""
        dest = "fp32" if self.fp32_dest_acc_en else "bf16"
        return f"{self.arch} {self.math_fidelity} {dest} dst, {self.mode}"

    def k_blocks(self, rows: int, k: int, columns: int) -> list[slice]:
        """K of a product [rows, k] @ [k, columns] cut into blocks. A K of 0 is one empty block."""
        tiles = self.block_tiles
        if tiles is None:
            tiles = ttnn_block_tiles(rows, k, columns, self.arch)
        step = tiles * TILE or max(1, k)
        return [slice(start, min(start + step, k)) for start in range(0, max(1, k), step)]


def ttnn_block_tiles(rows: int, k: int, columns: int, arch: str) -> int:
    """The tiles of K in a block of the product [rows, k] @ [k, columns], as ttnn chooses them for tensors in DRAM.

    A product whose result is one tile high or wide, or more than eight times as high as wide (or the reverse), has its
    cores in a line: two tiles, or one where their number is odd. Any other is spread over the grid of cores: K divided
    by the grid's columns, or one tile where that leaves a rest. ttnn takes less where a block doesn't fit the cores'
    memory, which is not modelled.
    """
    height, depth, width = (-(-size // TILE) for size in (rows, k, columns))
    narrow = min(height, width) <= 1 or max(height, width) // min(height, width) > 8
    parts = 2 if narrow else GRID_COLUMNS[arch]
    if depth % parts:
        return 1
    return 2 if narrow else depth // parts
