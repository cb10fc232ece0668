"""Tenstorrent's number formats: bfloat16, bfp8_b and bfp4_b, as the host library and as the device's packer make them.

Block formats share one 8-bit exponent among 16 neighbouring elements of a row. Each element has a sign and 7 (bfp8_b)
or 3 (bfp4_b) bits of magnitude with an explicit leading bit. Values are float32 tensors on any device. Groups of 16 run
along the last dimension, padded with zeros to a multiple of 16 (a tile pads to 32, with the same effect).

Host and device round differently: a weight that the host converts and the same weight packed by a kernel differ in a
few per cent of wide-range values. Source: the project's study of the vendor's stack. Its vectors are in
tests/golden/tt.
"""

from __future__ import annotations

import math

import torch

from ... import UserError

WEIGHT_DTYPES = ("bfloat16", "bfp_bf8", "bfp_bf4")
GROUP = 16

# Of a tile of 32 x 32 elements. In block formats, 64 shared exponents (one a row of each 16 x 16 face) come first.
TILE_BYTES = {"bfloat16": 2048, "bfp_bf8": 1088, "bfp_bf4": 576}

# Bits of magnitude, including the leading one.
MAGNITUDE_BITS = {"bfp_bf8": 7, "bfp_bf4": 3}


def bits_of(values: torch.Tensor) -> torch.Tensor:
    """The bit patterns of float32 values, int64 in 0 .. 2^32 - 1."""
    return values.to(torch.float32).contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def from_bits(bits: torch.Tensor) -> torch.Tensor:
    """float32 values of int64 bit patterns."""
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


def host_convert(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The values that the host library stores for `values` as `dtype`: float32, the same shape.

    Raises:
        UserError: A dtype outside WEIGHT_DTYPES.
    """
    if check_dtype(dtype) == "bfloat16":
        return _host_bf16(values)
    exponent, codes = host_blocks(values, dtype)
    return decode_blocks(exponent, codes, dtype)[..., : _last(values)].reshape(values.shape)


def host_blocks(values: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The host's block encoding: shared exponents int64 [..., groups] and codes int64 [..., groups, 16].

    A code is the sign above MAGNITUDE_BITS bits. Denormals count as 0. The mantissa is aligned by truncation and then
    rounded to nearest even. A code of magnitude 0 has no sign.
    """
    bits = bits_of(_grouped(values))
    sign, exponent = bits >> 31, bits >> 23 & 255
    mantissa = torch.where(exponent == 0, 0, 1 << 23 | bits & 0x7FFFFF)
    shared = exponent.amax(dim=-1)
    aligned = mantissa >> (shared[..., None] - exponent).clamp(max=31)
    keep = MAGNITUDE_BITS[dtype]
    drop = 24 - keep
    rounded = (aligned + (1 << drop - 1) - 1 + (aligned >> drop & 1)) >> drop
    return shared, _code(sign, rounded.clamp(max=(1 << keep) - 1), keep)


def device_pack(values: torch.Tensor, dtype: str, *, fp32_dest: bool, bfp_source: bool = True) -> torch.Tensor:
    """What the packer writes to L1 for the contents of Dst: float32, the same shape.

    Args:
        values: The contents of Dst, float32.
        dtype: One of WEIGHT_DTYPES.
        fp32_dest: Whether Dst holds float32, else bfloat16 in the upper 16 bits of each value.
        bfp_source: Whether the pack source format is BFP8, as after products and the matrix unit's element-wise
            operations but not for a plain typecast to bfp_bf8. Only block formats depend on it.

    Raises:
        UserError: A dtype outside WEIGHT_DTYPES.
    """
    if check_dtype(dtype) == "bfloat16":
        return _device_bf16(values) if fp32_dest else values.to(torch.float32)
    exponent, codes = device_blocks(values, dtype, fp32_dest=fp32_dest, bfp_source=bfp_source)
    return decode_blocks(exponent, codes, dtype)[..., : _last(values)].reshape(values.shape)


def device_blocks(
    values: torch.Tensor, dtype: str, *, fp32_dest: bool, bfp_source: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packer's block encoding, in the form of `host_blocks`. A float32 Dst is first truncated to bfloat16.

    Denormals count as 0 before anything is rounded.
    """
    del fp32_dest  # a bfloat16 Dst has only its upper half, so both are treated alike
    half = bits_of(_grouped(values)) >> 16
    half = torch.where(half & 0x7F80 == 0, 0, half)
    if bfp_source:
        half = (half + 1) & ~1
    sign, exponent = half >> 15, half >> 7 & 255
    mantissa = torch.where(exponent == 0, 0, 128 | half & 127)
    shared = exponent.amax(dim=-1)
    shift = shared[..., None] - exponent
    near = shift.clamp(max=8)
    magnitude = torch.where(shift < 8, (mantissa + (1 << near)) >> (near + 1), 0).clamp(max=127)
    if dtype == "bfp_bf4":
        magnitude = magnitude >> 4
    return shared, _code(sign, magnitude, MAGNITUDE_BITS[dtype])


def decode_blocks(exponent: torch.Tensor, codes: torch.Tensor, dtype: str) -> torch.Tensor:
    """Decodes shared exponents [..., groups] and codes [..., groups, 16] (int64) to float32 [..., groups * 16]."""
    keep = MAGNITUDE_BITS[dtype]
    sign, magnitude = codes >> keep, codes & (1 << keep) - 1
    # float32 represents every magnitude exactly, so its exponent field shows the leading one.
    leading = (bits_of(magnitude.to(torch.float32)) >> 23) - 127
    own = exponent[..., None] - (keep - 1 - leading)
    full = magnitude << (24 - keep)
    normal = own << 23 | (full << (keep - 1 - leading).clamp(min=0)) & 0x7FFFFF
    shared = exponent[..., None]
    denormal = torch.where(shared > 0, full << (shared - 1).clamp(min=0, max=31), full >> 1) & 0x7FFFFF
    bits = torch.where(magnitude == 0, 0, torch.where(own >= 1, normal, denormal))
    # Exponent 255 is assembled from bits: a leading one alone is infinity, anything more a NaN.
    bits = torch.where((own == 255) & (bits & 0x7FFFFF != 0) & (magnitude != 0), 0x7FC00000, bits)
    return from_bits(sign << 31 | bits).flatten(-2)


def round_half_away_bf16(values: torch.Tensor) -> torch.Tensor:
    """float32 values rounded to bfloat16, halves away from zero, as Dst keeps 8 bits. For finite input."""
    return ((_int32(values) + 0x8000) & -0x10000).view(torch.float32)


def truncate(values: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """`values` as float32 with the lowest mantissa bits cleared, `mantissa_bits` (0 .. 23) kept."""
    mask = -1 << (23 - mantissa_bits)
    return (_int32(values) & mask).view(torch.float32)


def check_dtype(dtype: str) -> str:
    """Returns `dtype` if it is one of WEIGHT_DTYPES. Raises UserError otherwise."""
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"TT dtype {dtype!r} is unknown; allowed are {', '.join(WEIGHT_DTYPES)}")
    return dtype


def _host_bf16(values: torch.Tensor) -> torch.Tensor:
    rounded = values.to(torch.float32).to(torch.bfloat16).to(torch.float32)
    return torch.where(torch.isnan(values), math.nan, rounded)


def _device_bf16(values: torch.Tensor) -> torch.Tensor:
    bits = _int32(values)
    exponent = bits & 0x7F800000
    infinite = bits & -0x80000000 | 0x7F800000
    packed = torch.where(exponent == 0x7F800000, infinite, (bits + 0x8000) & -0x10000)
    return torch.where(exponent == 0, 0, packed).view(torch.float32)


def _int32(values: torch.Tensor) -> torch.Tensor:
    """The bit patterns of float32 values as signed numbers, which are several times cheaper than those of `bits_of`."""
    return values.to(torch.float32).contiguous().view(torch.int32)


def _code(sign: torch.Tensor, magnitude: torch.Tensor, keep: int) -> torch.Tensor:
    return torch.where(magnitude == 0, 0, sign << keep | magnitude)


def _last(values: torch.Tensor) -> int:
    return values.shape[-1] if values.ndim else 1


def _grouped(values: torch.Tensor) -> torch.Tensor:
    """float32 [..., groups, 16], the last dimension padded with zeros."""
    values = values.to(torch.float32).reshape(*values.shape[:-1], _last(values))
    padded = torch.nn.functional.pad(values, (0, -_last(values) % GROUP))
    return padded.unflatten(-1, (-1, GROUP))
