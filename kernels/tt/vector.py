"""The vector unit's multiply-add in numpy integers, the one rounding step of its functions.

Product and addend have three bits below float32's last. What is shifted out of them is kept as one bit, except for a
value that is shifted out as a whole. So this is neither a fused multiply-add nor two rounded steps.

Source: the vendor's description of the instruction set. Vectors of its simulator are in tests/golden/tt.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
SIGN, INFINITY, NAN = 1 << 31, 255 << 23, 0x7FC00000


def multiply_add(a: Array, b: Array, c: Array, arch: str = "wormhole") -> Array:
    """a b + c of float32 bit patterns, uint32 of one shape.

    Denormals count as 0 and results become 0. Wormhole gives no negative zero, loses a bit where it shifts by two, and
    puts other bits into a NaN, which here is Blackhole's.
    """
    (_, e_a, m_a), (_, e_b, m_b), (sign_c, e_c, m_c) = (_fields(x) for x in (a, b, c))
    blackhole = arch == "blackhole"
    sign_p = (a.astype(np.int64) ^ b) & SIGN
    product = m_a * m_b
    m_p, e_p = product >> 20 | (product & 0xFFFFF != 0), e_a + e_b - 127
    m_c = m_c << 3

    e = np.maximum(e_p, e_c)
    p, z = _shifted(m_p, e - e_p), _shifted(m_c, e - e_c)
    sign = np.where(p >= z, sign_p, sign_c)
    total = np.where(sign_p == sign_c, p + z, np.abs(p - z))
    zero = sign_c & sign_p if blackhole else np.zeros_like(sign)
    result = np.where(total == 0, zero, _rounded(total, sign, e, blackhole))

    alone = (m_p == 0) | (e_p < 0)
    result = np.where(alone, np.where(m_c == 0, zero, c), result)
    endless_p = (e_a == 255) | (e_b == 255) | (e_p >= 255)
    result = np.where(endless_p, sign_p | INFINITY, result)
    result = np.where(e_c == 255, c, result)
    opposed = (e_c == 255) & (sign_p != sign_c) & ((e_a == 255) | (e_b == 255) | (endless_p & (not blackhole)))
    nan = opposed | ((e_a == 255) & (m_b == 0)) | ((e_b == 255) & (m_a == 0))
    for exponent, mantissa in ((e_a, m_a), (e_b, m_b), (e_c, m_c >> 3)):
        nan |= (exponent == 255) & (mantissa != 1 << 23)
    return np.where(nan, NAN, result).astype(np.uint32)


def _fields(bits: Array) -> tuple[Array, Array, Array]:
    """Sign bit, exponent and 24-bit mantissa with its leading one, 0 for a denormal."""
    bits = bits.astype(np.int64)
    exponent = bits >> 23 & 255
    return bits & SIGN, exponent, np.where(exponent == 0, 0, 1 << 23 | bits & 0x7FFFFF)


def _shifted(value: Array, d: Array) -> Array:
    """value >> d, with the last bit set if any was shifted out and any is left."""
    d = np.clip(d, 0, 40)
    kept = value >> d
    return np.where(kept == 0, 0, kept | (kept << d != value))


def _rounded(total: Array, sign: Array, e: Array, blackhole: bool) -> Array:
    """The sum as float32: normalised to 27 bits and rounded to nearest even."""
    n = np.frexp(total.astype(np.float64))[1].astype(np.int64) - 27
    e_out = e + n
    low = e_out <= 0
    n, e_field = (n + low, np.maximum(e_out, 0)) if blackhole else (n, e_out)
    right = np.maximum(n, 0)
    sticky = total & (np.where(n > 0, n | 1, 0) if blackhole else n > 0) != 0
    m = total << np.maximum(-n, 0) >> right | sticky
    bits = (e_field << 23) + (m >> 3 & 0x7FFFFF)
    bits = bits + ((m & 7) + (bits & 1) > 4)
    flushed = (bits >> 23 == 0) if blackhole else (bits >> 23 == 0) | (e_out < 0)
    bits = np.where(flushed, 0, bits) | (sign if blackhole else np.where(flushed, 0, sign))
    return np.where(e_out >= 255, sign | INFINITY, bits)


def fast_exp(x: Array, arch: str = "wormhole") -> Array:
    """The kernels' approximate exp of float32 values: x / ln 2 in steps of 1/256 as exponent and mantissa."""
    scaled = _mad(np.maximum(x, np.float32(-88.5)), 256 / math.log(2), 32500.818359375, arch)
    steps = np.minimum(np.floor(np.maximum(scaled, 0).astype(np.float64) + 0.5), 255 << 8).astype(np.uint32)
    return np.where(steps < 1 << 8, 0, steps << 15).astype(np.uint32).view(np.float32)


def reciprocal(x: Array, arch: str = "wormhole", steps: int = 2) -> Array:
    """The kernels' 1 / x of positive float32 values: a guess, refined.

    Wormhole's guess is a polynomial of the mantissa, refined by `steps` of Newton's method. Blackhole's is an
    instruction (`approximate_reciprocal`), refined by the geometric series of its error.
    """
    if arch == "blackhole":
        y = approximate_reciprocal(x)
        error = _mad(-x, y, 1.0, arch)
        series = _mad(_mad(error, error, error, arch), error, error, arch)
        return _mad(np.fmin(series, np.float32(1.0)), y, y, arch)
    bits = x.view(np.uint32)
    negative = (bits & 0x7FFFFF | 127 << 23 | SIGN).astype(np.uint32).view(np.float32)
    y = _mad(negative, 0.3232325017452239990234375, 1.4545459747314453125, arch)
    y = _mad(y, negative, 2.121212482452392578125, arch)
    for _ in range(steps):
        y = _mad(y, _mad(negative, y, 1.0, arch), y, arch)
    scale = ((254 - (bits >> 23 & 255)) << 23).astype(np.uint32).view(np.float32)
    return _mad(y, scale, 0.0, arch)


def approximate_reciprocal(x: Array) -> Array:
    """Blackhole's instruction SFPARECIP for positive float32 values: 1 / x to 8 bits.

    The description's table is the rounded reciprocal of the middle of each of 128 intervals of the mantissa.
    """
    bits = x.view(np.uint32).astype(np.int64)
    mantissa = np.rint(2**15 / ((bits >> 16 & 127) + 128.5)).astype(np.int64) - 128
    found = 253 - (bits >> 23) << 23 | mantissa << 16
    found = np.where(bits < 1 << 23, INFINITY, np.where(bits < 253 << 23, found, 0))
    return found.astype(np.uint32).view(np.float32)


def rsqrt(x: Array, arch: str = "wormhole") -> Array:
    """The kernels' 1 / sqrt(x) of positive float32 values: a first guess from the bits, refined twice."""
    y = (0x5F1110A0 - (x.view(np.uint32) >> 1)).astype(np.uint32).view(np.float32)
    c = _mad(-y, _mad(x, y, 0.0, arch), 0.0, arch)
    y = _mad(y, _mad(c, _mad(c, 1.0, 2.2533049, arch), 2.2825186, arch), 0.0, arch)
    rest = _mad(-y, _mad(x, y, 0.0, arch), 1.0, arch)
    return _mad(rest, y * np.float32(0.5), y, arch)


def _mad(a: Array, b: Array | float, c: Array | float, arch: str) -> Array:
    def bits(x: Array | float) -> Array:
        return np.broadcast_to(np.asarray(x, np.float32), a.shape).view(np.uint32)

    return multiply_add(bits(a), bits(b), bits(c), arch).view(np.float32)
