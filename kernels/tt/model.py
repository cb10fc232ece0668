"""The matrix unit in numpy integers: short enough to compare with its description, and the reference for the C++ one.

Operands and Dst are uint32 bit patterns of float32 (a bfloat16 Dst in the upper 16 bits). float32 operands have 10 bits
of mantissa (TF32); the rest is cut off. One instruction multiplies 16-deep slices in two groups of 8 products. The
products of a group are aligned to its own largest exponent, then both groups and Dst to theirs, each time with halves
rounded away from zero. Names follow the instructions: MVMUL, ELWADD, ELWMUL.

Source: the project's study of the vendor's functional simulator. Its vectors are in tests/golden/tt.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
PHASES = {"lofi": 1, "hifi2": 2, "hifi3": 3, "hifi4": 4}


def mvmul(src_a: Array, src_b: Array, dst: Array, phase: int, fp32_dest: bool, arch: str = "wormhole") -> Array:
    """Dst + SrcB @ SrcA for one fidelity phase: SrcB [..., m, 16], SrcA [..., 16, n], Dst and result [..., m, n]."""
    a = np.swapaxes(src_a, -1, -2)[..., None, :, :]
    b = src_b[..., :, None, :]
    sign, product, exponent = _products(a, b, phase)
    groups = []
    for part in (slice(0, 8), slice(8, 16)):
        e = exponent[..., part]
        top = np.maximum(e.max(axis=-1), 0)
        d = np.clip(top[..., None] - e, 0, 30)
        total = (sign[..., part] * ((2 * product[..., part] + (1 << d)) >> (d + 1))).sum(axis=-1)
        groups.append((np.where(top > 0, total, 0) << 13, top))
    return _accumulate(groups, dst, fp32_dest, arch)


def elwadd(
    a: Array,
    b: Array,
    dst: Array,
    fp32_dest: bool,
    accumulate: bool = False,
    subtract: bool = False,
    arch: str = "wormhole",
) -> Array:
    """a + b (or a - b) element by element, in place of Dst or, with `accumulate`, added to it."""
    a, b = (x.astype(np.int64) for x in (a, b))
    if subtract:
        b = b ^ 0x80000000
    large = np.where((a & 0x7FFFFFFF) >= (b & 0x7FFFFFFF), a, b)
    small = np.where((a & 0x7FFFFFFF) >= (b & 0x7FFFFFFF), b, a)
    (sign_l, e_l, m_l), (sign_s, e_s, m_s) = _fields(large), _fields(small)
    d = np.clip(e_l - e_s, 0, 30)
    total = sign_l * m_l + sign_s * ((2 * m_s + (1 << d)) >> (d + 1))
    return _accumulate([(total << 13, e_l)], dst if accumulate else np.zeros_like(dst), fp32_dest, arch)


def elwmul(a: Array, b: Array, dst: Array, phase: int, fp32_dest: bool, arch: str = "wormhole") -> Array:
    """Dst + a * b element by element for one fidelity phase; a is SrcA (5 bits a phase), b SrcB (7 bits)."""
    sign, product, exponent = _products(a, b, phase)
    top = np.maximum(exponent, 0)
    return _accumulate([(np.where(top > 0, sign * product, 0) << 13, top)], dst, fp32_dest, arch)


def matmul(
    in0: Array, in1: Array, fidelity: str, fp32_dest: bool, arch: str = "wormhole", dst: Array | None = None
) -> Array:
    """Dst after in0 [m, k] @ in1 [k, n]. The loops are each 32 of k, each phase, and its two 16-deep slices.

    k is padded with zeros to a multiple of 32, which changes nothing except Dst = -0.
    """
    m, k = in0.shape
    n = in1.shape[1]
    padded = -k % 32
    in0, in1 = np.pad(in0, ((0, 0), (0, padded))), np.pad(in1, ((0, padded), (0, 0)))
    result = np.zeros((m, n), np.uint32) if dst is None else dst
    for tile in range(0, k + padded, 32):
        for phase in range(PHASES[fidelity]):
            for start in (tile, tile + 16):
                part = slice(start, start + 16)
                result = mvmul(in1[part], in0[:, part], result, phase, fp32_dest, arch)
    return result


def _fields(bits: Array) -> tuple[Array, Array, Array]:
    """Sign (+1, -1), exponent and 11-bit mantissa with its leading one. 0 and denormals have neither."""
    bits = bits.astype(np.int64)
    exponent = bits >> 23 & 255
    return 1 - 2 * (bits >> 31), exponent, np.where(exponent == 0, 0, 1024 | bits >> 13 & 1023)


def _products(a: Array, b: Array, phase: int) -> tuple[Array, Array, Array]:
    """Sign, magnitude (12 bits) and exponent of the products of one phase's mantissa parts."""
    (sign_a, e_a, m_a), (sign_b, e_b, m_b) = _fields(a), _fields(b)
    part_a = m_a >> 1 & 31 if phase & 1 else m_a >> 6
    part_b = (m_b & 15) << 3 if phase & 2 else m_b >> 4
    zero = (e_a == 0) | (e_b == 0)
    exponent = e_a + e_b - 127 - (5 if phase & 1 else 0) - (7 if phase & 2 else 0)
    return sign_a * sign_b, np.where(zero, 0, part_a * part_b), np.where(zero, 0, exponent)


def _accumulate(groups: list[tuple[Array, Array]], dst: Array, fp32_dest: bool, arch: str) -> Array:
    """The new Dst, from its old bits and (value in units of 2^(exponent - 150), exponent) of each group."""
    bits = dst.astype(np.int64)
    e_d = bits >> 23 & 255
    m_d = np.where(e_d == 0, 0, 1 << 23 | bits & 0x7FFFFF)
    e = e_d
    for _, exponent in groups:
        e = np.maximum(e, exponent)
    # Dst is aligned by its magnitude, the groups in two's complement.
    held = _shift(m_d, e - e_d)
    if not fp32_dest:
        held = held + 4096 & ~8191
    total = np.where(bits >> 31, -held, held)
    for value, exponent in groups:
        aligned = _shift(value, e - exponent)
        total = total + (aligned if fp32_dest else aligned + 4096 & ~8191)
    magnitude = np.abs(total)
    length = np.frexp(magnitude.astype(np.float64))[1].astype(np.int64)
    e_out = e + length - 24
    keep = 24 if fp32_dest else 8
    drop = np.maximum(length - keep, 0)
    mantissa = np.where(drop > 0, (magnitude + (1 << np.maximum(drop - 1, 0))) >> drop, magnitude)
    mantissa = mantissa << np.maximum(keep - length, 0)
    carry = mantissa >> keep
    mantissa, e_out = mantissa >> carry, e_out + carry
    fraction = (mantissa & (1 << keep - 1) - 1) << (24 - keep)
    if arch == "wormhole":
        faulty = total == -1
        e_out, fraction = np.where(faulty, e + 4, e_out), np.where(faulty, 0, fraction)
    sign = np.where(total < 0, 1 << 31, 0)
    new = np.where(e_out >= 255, sign | 255 << 23, sign | e_out << 23 | fraction)
    return np.where((total == 0) | (e <= 0) | (e_out <= 0), 0, new).astype(np.uint32)


def _shift(value: Array, d: Array) -> Array:
    near = np.clip(d, 1, 31)
    rounded = np.where(d >= 31, 0, (value + (1 << near - 1)) >> near)
    return np.where(d == 0, value, rounded)
