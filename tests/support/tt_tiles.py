"""The tiles of golden files: 32 x 32 elements as four consecutive 16 x 16 faces, and the bytes of each format.

A tile of bfp8_b has 1,088 bytes and one of bfp4_b 576: 64 shared exponents (faces 0 to 3, 16 rows each), then one byte
per element, or half a byte with the even element low. A tile of bfloat16 has 2,048 bytes, little-endian.
"""

from __future__ import annotations

import numpy as np
import torch
from isotrain import UserError
from isotrain.kernels.tt.formats import (
    MAGNITUDE_BITS,
    TILE_BYTES,
    bits_of,
    check_dtype,
    decode_blocks,
    from_bits,
    host_blocks,
    host_convert,
)

TILE = 32
FACE = 16


def tilise(matrix: torch.Tensor) -> torch.Tensor:
    """[rows, columns] to [tiles, 4, 16, 16]: tiles row by row, faces left to right and top to bottom, padding 0."""
    if matrix.ndim != 2:
        raise UserError(f"a tile holds part of a matrix (2 dimensions), not of shape {tuple(matrix.shape)}")
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -columns % TILE, 0, -rows % TILE))
    high, wide = padded.shape[0] // TILE, padded.shape[1] // TILE
    faces = padded.reshape(high, 2, FACE, wide, 2, FACE).permute(0, 3, 1, 4, 2, 5)
    return faces.reshape(high * wide, 4, FACE, FACE)


def untilise(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The [rows, columns] matrix from which `tilise` made `tiles`."""
    high, wide = -(-rows // TILE), -(-columns // TILE)
    if tuple(tiles.shape) != (high * wide, 4, FACE, FACE):
        raise UserError(f"{rows} x {columns} elements are {high * wide} tiles of (4, 16, 16), not {tuple(tiles.shape)}")
    faces = tiles.reshape(high, wide, 2, 2, FACE, FACE).permute(0, 2, 4, 1, 3, 5)
    return faces.reshape(high * TILE, wide * TILE)[:rows, :columns]


def host_bytes(matrix: torch.Tensor, dtype: str) -> np.ndarray:
    """The bytes (uint8) that the host library writes for a float32 matrix in tile layout."""
    tiles = tilise(matrix)
    if check_dtype(dtype) == "bfloat16":
        return _halves(host_convert(tiles, dtype))
    return _block_bytes(*host_blocks(tiles, dtype), dtype)


def from_bytes(data: np.ndarray, dtype: str, rows: int, columns: int) -> torch.Tensor:
    """The float32 matrix [rows, columns] of packed tiles. Raises UserError for a wrong number of bytes."""
    tiles = -(-rows // TILE) * -(-columns // TILE)
    size = TILE_BYTES[check_dtype(dtype)]
    if data.size != tiles * size:
        raise UserError(f"{rows} x {columns} elements of {dtype} are {tiles * size} bytes, not {data.size}")
    if dtype == "bfloat16":
        values = from_bits(torch.from_numpy(data.view("<u2").astype(np.int64)) << 16)
        return untilise(values.reshape(tiles, 4, FACE, FACE), rows, columns)
    per_tile = torch.from_numpy(data.reshape(tiles, size).astype(np.int64))
    exponent, packed = per_tile[:, :64].reshape(tiles, 4, FACE, 1), per_tile[:, 64:]
    if dtype == "bfp_bf4":
        packed = torch.stack((packed & 15, packed >> 4), dim=-1)
    values = decode_blocks(exponent, packed.reshape(tiles, 4, FACE, 1, FACE), dtype)
    return untilise(values, rows, columns)


def _halves(values: torch.Tensor) -> np.ndarray:
    return (bits_of(values) >> 16).flatten().numpy().astype("<u2").view(np.uint8)


def _block_bytes(exponent: torch.Tensor, codes: torch.Tensor, dtype: str) -> np.ndarray:
    tiles = exponent.shape[0]
    flat = codes.reshape(tiles, -1)
    if MAGNITUDE_BITS[dtype] == 3:
        flat = flat[:, 0::2] | flat[:, 1::2] << 4
    return torch.cat((exponent.reshape(tiles, 64), flat), dim=1).flatten().numpy().astype(np.uint8)
