// The matrix unit, written with the operations of a vector type V. Each translation unit that includes this is compiled
// for its own instruction set. Internal linkage keeps the linker from mixing their instances.
//
// V: Lanes16 (V::lanes of them), Lanes32 (half as many), Mask (of Lanes32). engine_portable.cpp shows what the
// operations of Lanes32 mean (shifts take their counts as unsigned, and from 32 on shift everything out). Of Lanes16,
// which `multiply` needs beside them: pair broadcasts two lanes; mul_round is (a b + 2^14) >> 15; power is 2^(14 - d), 0
// from d = 15 on; count_bits counts those of a low byte under a high one of 0; where_greater(a, b, value) is value or 0;
// low and high widen half of the lanes each. Correctness is kernels/tt/model.py's, value by value.
#pragma once

#include "engine.h"

namespace {

using isotrain_tt::kGroup;
using isotrain_tt::kPanel;
using isotrain_tt::kSlice;
using isotrain_tt::kTile;
using isotrain_tt::Operation;
using isotrain_tt::Panel;
using isotrain_tt::Row;
using isotrain_tt::Rules;

// (value + 2^(d - 1)) >> d in two's complement; d = 0 leaves it, d >= 31 gives 0.
template <class V>
inline typename V::Lanes32 aligned(typename V::Lanes32 value, typename V::Lanes32 d) {
    d = V::min32(d, V::set32(31));
    // A shift by -1 gives 0, so d = 0 adds nothing.
    const auto half = V::shift_left(V::set32(1), V::sub32(d, V::set32(1)));
    return V::shift_right_signed(V::add32(value, half), d);
}

template <class V, bool fp32>
inline typename V::Lanes32 to_dest_precision(typename V::Lanes32 value) {
    if (fp32) return value;
    return V::and32(V::add32(value, V::set32(4096)), V::set32(~8191));
}

// Adds two groups' sums to Dst: t in units of 2^(g - 137), g the groups' exponents (0: an empty group, t = 0).
template <class V, bool fp32>
inline typename V::Lanes32 accumulate(typename V::Lanes32 t0, typename V::Lanes32 g0, typename V::Lanes32 t1,
                                      typename V::Lanes32 g1, typename V::Lanes32 dst, bool wormhole) {
    const auto zero = V::set32(0);
    const auto held_exponent = V::and32(V::template right<23>(dst), V::set32(255));
    auto held = V::or32(V::and32(dst, V::set32(0x7FFFFF)), V::set32(0x800000));
    held = V::select(V::greater(held_exponent, zero), held, zero);
    const auto e = V::max32(V::max32(g0, g1), held_exponent);
    held = to_dest_precision<V, fp32>(aligned<V>(held, V::sub32(e, held_exponent)));
    const auto held_sign = V::template right_signed<31>(dst);
    held = V::sub32(V::xor32(held, held_sign), held_sign);
    const auto v0 = to_dest_precision<V, fp32>(aligned<V>(V::template left<13>(t0), V::sub32(e, g0)));
    const auto v1 = to_dest_precision<V, fp32>(aligned<V>(V::template left<13>(t1), V::sub32(e, g1)));
    const auto total = V::add32(V::add32(v0, v1), held);

    const auto magnitude = V::abs32(total);
    const auto zeros = V::leading_zeros(magnitude);
    const auto normal = V::shift_left(magnitude, zeros);
    constexpr int keep = fp32 ? 24 : 8;
    const auto rounded = V::add32(V::template right<32 - keep>(normal),
                                  V::and32(V::template right<31 - keep>(normal), V::set32(1)));
    // The leading one counts as 1 in the exponent field, and so does a carry out of the mantissa.
    const auto exponent = V::sub32(V::add32(e, V::set32(7)), zeros);
    const auto carried = V::add32(V::add32(exponent, V::set32(1)), V::template right<keep>(rounded));
    const auto sign = V::and32(total, V::set32(static_cast<int>(0x80000000u)));
    const auto infinity = V::set32(255 << 23);
    auto bits = V::add32(V::template left<23>(exponent), V::template left<24 - keep>(rounded));
    bits = V::select(V::greater(carried, V::set32(254)), infinity, bits);
    bits = V::select(V::greater(carried, zero), V::or32(bits, sign), zero);
    if (fp32 && wormhole) {
        const auto moved = V::add32(e, V::set32(4));
        auto wrong = V::select(V::greater(moved, V::set32(254)), infinity, V::template left<23>(moved));
        wrong = V::or32(wrong, sign);
        bits = V::select(V::equal(total, V::set32(-1)), wrong, bits);
    }
    return V::select(V::equal(total, zero), zero, bits);
}

// One group: the sum of its 8 products, aligned to their largest exponent, and that exponent.
template <class V>
inline void group(const std::int16_t* part, const std::int16_t* exponent, const std::int16_t* sign,
                  const std::int16_t* signs, const std::uint32_t* row_part, const std::uint32_t* row_exponent,
                  const std::uint32_t* row_sign, std::uint32_t row_signs, int offset, typename V::Lanes16& sum,
                  typename V::Lanes16& top) {
    typename V::Lanes16 e[kGroup];
    for (int i = 0; i < kGroup; ++i) e[i] = V::add16(V::load16(exponent + i * kPanel), V::pair(row_exponent[i]));
    auto largest = V::max16(V::max16(V::max16(e[0], e[1]), V::max16(e[2], e[3])),
                            V::max16(V::max16(e[4], e[5]), V::max16(e[6], e[7])));
    auto total = V::count_bits(V::xor16(V::load16(signs), V::pair(row_signs)));
    for (int i = 0; i < kGroup; ++i) {
        const auto product = V::mul16(V::load16(part + i * kPanel), V::pair(row_part[i]));
        const auto rounded = V::mul_round(product, V::power(V::sub16(largest, e[i])));
        // -x is ~x + 1. The sum begins with the number of negative products, which adds the ones.
        total = V::add16(total, V::xor3(rounded, V::load16(sign + i * kPanel), V::pair(row_sign[i])));
    }
    const auto bias = V::set16(static_cast<std::int16_t>(offset));
    sum = V::where_greater(largest, bias, total);
    top = V::max16(V::sub16(largest, bias), V::set16(0));
}

template <class V, bool fp32>
void multiply_as(const Row* rows, int count, const Panel& panel, int k, const Rules& rules,
                 std::uint32_t* const* dst) {
    for (int tile = 0; tile < k; tile += kTile) {
        for (int phase = 0; phase < rules.phases; ++phase) {
            const int a = phase & 1, b = phase >> 1;
            const int offset = 127 + (a ? 5 : 0) + (b ? 7 : 0);
            for (int slice = tile; slice < tile + kTile; slice += kSlice) {
                for (int row = 0; row < count; ++row) {
                    const Row& r = rows[row];
                    for (int lane = 0; lane < kPanel; lane += V::lanes) {
                        typename V::Lanes16 sum[2], top[2];
                        for (int half = 0; half < 2; ++half) {
                            const int at = slice + half * kGroup, in = at * kPanel + lane;
                            group<V>(panel.part[a] + in, panel.exponent + in, panel.sign + in,
                                     panel.signs + at / kGroup * kPanel + lane, r.part[b] + at, r.exponent + at,
                                     r.sign + at, r.signs[at / kGroup], offset, sum[half], top[half]);
                        }
                        std::uint32_t* out = dst[row] + lane;
                        V::store32(out, accumulate<V, fp32>(V::low(sum[0]), V::low(top[0]), V::low(sum[1]),
                                                            V::low(top[1]), V::load32(out), rules.wormhole));
                        out += V::lanes / 2;
                        V::store32(out, accumulate<V, fp32>(V::high(sum[0]), V::high(top[0]), V::high(sum[1]),
                                                            V::high(top[1]), V::load32(out), rules.wormhole));
                    }
                }
            }
        }
    }
}

template <class V>
void multiply(const Row* rows, int count, const Panel& panel, int k, const Rules& rules, std::uint32_t* const* dst) {
    if (rules.fp32_dest)
        multiply_as<V, true>(rows, count, panel, k, rules, dst);
    else
        multiply_as<V, false>(rows, count, panel, k, rules, dst);
}

// Exponent, 11-bit mantissa (both 0 for 0 and denormals) and sign (0 or -1) of float32 bit patterns.
template <class V>
struct Parts {
    typename V::Lanes32 exponent, mantissa, sign;

    explicit Parts(typename V::Lanes32 bits) {
        exponent = V::and32(V::template right<23>(bits), V::set32(255));
        const auto fraction = V::and32(V::template right<13>(bits), V::set32(1023));
        mantissa = V::select(V::greater(exponent, V::set32(0)), V::or32(fraction, V::set32(1024)), V::set32(0));
        sign = V::template right_signed<31>(bits);
    }
};

template <class V>
inline typename V::Lanes32 signed_by(typename V::Lanes32 magnitude, typename V::Lanes32 sign) {
    return V::sub32(V::xor32(magnitude, sign), sign);
}

template <class V, bool fp32>
inline typename V::Lanes32 sum_of(typename V::Lanes32 a, typename V::Lanes32 b, bool wormhole) {
    const auto zero = V::set32(0), magnitude = V::set32(0x7FFFFFFF);
    const auto b_larger = V::greater(V::and32(b, magnitude), V::and32(a, magnitude));
    const Parts<V> large(V::select(b_larger, b, a)), small(V::select(b_larger, a, b));
    const auto d = V::min32(V::sub32(large.exponent, small.exponent), V::set32(30));
    const auto twice = V::add32(V::template left<1>(small.mantissa), V::shift_left(V::set32(1), d));
    const auto aligned_small = V::shift_right_signed(twice, V::add32(d, V::set32(1)));
    const auto total = V::add32(signed_by<V>(large.mantissa, large.sign), signed_by<V>(aligned_small, small.sign));
    return accumulate<V, fp32>(total, large.exponent, zero, zero, zero, wormhole);
}

template <class V, bool fp32>
inline typename V::Lanes32 product_of(typename V::Lanes32 a, typename V::Lanes32 b, const Rules& rules) {
    const auto zero = V::set32(0);
    const Parts<V> x(a), y(b);
    auto dst = zero;
    for (int phase = 0; phase < rules.phases; ++phase) {
        const auto part = phase & 1 ? V::and32(V::template right<1>(x.mantissa), V::set32(31))
                                    : V::template right<6>(x.mantissa);
        const auto other = phase & 2 ? V::template left<3>(V::and32(y.mantissa, V::set32(15)))
                                     : V::template right<4>(y.mantissa);
        const int offset = 127 + (phase & 1 ? 5 : 0) + (phase & 2 ? 7 : 0);
        auto top = V::max32(V::sub32(V::add32(x.exponent, y.exponent), V::set32(offset)), zero);
        top = V::select(V::greater(x.exponent, zero), top, zero);
        top = V::select(V::greater(y.exponent, zero), top, zero);
        const auto value = signed_by<V>(V::mul32(part, other), V::xor32(x.sign, y.sign));
        dst = accumulate<V, fp32>(V::select(V::greater(top, zero), value, zero), top, zero, zero, dst, rules.wormhole);
    }
    return dst;
}

template <class V, bool fp32>
void elementwise_as(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* out, Operation operation,
                    const Rules& rules) {
    for (int lane = 0; lane < kPanel; lane += V::lanes / 2) {
        const auto x = V::load32(a + lane);
        auto y = V::load32(b + lane);
        if (operation == Operation::subtract) y = V::xor32(y, V::set32(static_cast<int>(0x80000000u)));
        V::store32(out + lane, operation == Operation::multiply ? product_of<V, fp32>(x, y, rules)
                                                                : sum_of<V, fp32>(x, y, rules.wormhole));
    }
}

template <class V>
void elementwise(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* out, Operation operation,
                 const Rules& rules) {
    if (rules.fp32_dest)
        elementwise_as<V, true>(a, b, out, operation, rules);
    else
        elementwise_as<V, false>(a, b, out, operation, rules);
}

}  // namespace
