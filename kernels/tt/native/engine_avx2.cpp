// The matrix unit on AVX2 (Haswell, Zen and later).
#if defined(__x86_64__)

#include <cstdint>

#include "../../include/intrinsics.h"
#include "../../include/processor.h"
#include "engine.h"

#define ISOTRAIN_ISA "avx2"
#include "../../include/isa_begin.h"

#include "unit.h"

namespace {

struct Avx2 {
    static constexpr int lanes = 16;
    using Lanes16 = __m256i;
    using Lanes32 = __m256i;
    using Mask = __m256i;

    static Lanes16 load16(const std::int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Lanes16 set16(std::int16_t x) { return _mm256_set1_epi16(x); }
    static Lanes16 pair(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static Lanes16 add16(Lanes16 a, Lanes16 b) { return _mm256_add_epi16(a, b); }
    static Lanes16 sub16(Lanes16 a, Lanes16 b) { return _mm256_sub_epi16(a, b); }
    static Lanes16 mul16(Lanes16 a, Lanes16 b) { return _mm256_mullo_epi16(a, b); }
    static Lanes16 xor16(Lanes16 a, Lanes16 b) { return _mm256_xor_si256(a, b); }
    static Lanes16 xor3(Lanes16 a, Lanes16 b, Lanes16 c) { return xor16(xor16(a, b), c); }
    static Lanes16 max16(Lanes16 a, Lanes16 b) { return _mm256_max_epi16(a, b); }
    static Lanes16 mul_round(Lanes16 a, Lanes16 b) { return _mm256_mulhrs_epi16(a, b); }
    // There is no shift by 16-bit counts: both bytes of 2^(14 - d) come from tables of 16 entries.
    static Lanes16 power(Lanes16 d) {
        const auto index = _mm256_min_epi16(d, _mm256_set1_epi16(15));
        const auto high = _mm256_broadcastsi128_si256(_mm_setr_epi8(64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0));
        const auto low =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, -128, 64, 32, 16, 8, 4, 2, 1, 0));
        return _mm256_or_si256(_mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8),
                               _mm256_and_si256(_mm256_shuffle_epi8(low, index), _mm256_set1_epi16(255)));
    }
    static Lanes16 count_bits(Lanes16 a) {
        const auto nibbles = _mm256_set1_epi16(15);
        const auto counts = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        return _mm256_add_epi16(_mm256_shuffle_epi8(counts, _mm256_and_si256(a, nibbles)),
                                _mm256_shuffle_epi8(counts, _mm256_srli_epi16(a, 4)));
    }
    static Lanes16 where_greater(Lanes16 a, Lanes16 b, Lanes16 value) {
        return _mm256_and_si256(_mm256_cmpgt_epi16(a, b), value);
    }
    static Lanes32 low(Lanes16 a) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(a)); }
    static Lanes32 high(Lanes16 a) { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(a, 1)); }

    static Lanes32 load32(const std::uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store32(std::uint32_t* p, Lanes32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
    static Lanes32 set32(int x) { return _mm256_set1_epi32(x); }
    static Lanes32 add32(Lanes32 a, Lanes32 b) { return _mm256_add_epi32(a, b); }
    static Lanes32 sub32(Lanes32 a, Lanes32 b) { return _mm256_sub_epi32(a, b); }
    static Lanes32 mul32(Lanes32 a, Lanes32 b) { return _mm256_mullo_epi32(a, b); }
    static Lanes32 and32(Lanes32 a, Lanes32 b) { return _mm256_and_si256(a, b); }
    static Lanes32 or32(Lanes32 a, Lanes32 b) { return _mm256_or_si256(a, b); }
    static Lanes32 xor32(Lanes32 a, Lanes32 b) { return _mm256_xor_si256(a, b); }
    static Lanes32 max32(Lanes32 a, Lanes32 b) { return _mm256_max_epi32(a, b); }
    static Lanes32 min32(Lanes32 a, Lanes32 b) { return _mm256_min_epi32(a, b); }
    static Lanes32 abs32(Lanes32 a) { return _mm256_abs_epi32(a); }
    // From the exponent of the value as float32. With the bit below the leading one cleared, rounding can't carry.
    static Lanes32 leading_zeros(Lanes32 a) {
        const auto safe = _mm256_andnot_si256(_mm256_srli_epi32(a, 1), a);
        const auto exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(safe)), 23);
        return _mm256_min_epi32(_mm256_sub_epi32(_mm256_set1_epi32(158), exponent), _mm256_set1_epi32(32));
    }
    static Lanes32 shift_left(Lanes32 a, Lanes32 d) { return _mm256_sllv_epi32(a, d); }
    static Lanes32 shift_right_signed(Lanes32 a, Lanes32 d) { return _mm256_srav_epi32(a, d); }
    template <int n>
    static Lanes32 left(Lanes32 a) { return _mm256_slli_epi32(a, n); }
    template <int n>
    static Lanes32 right(Lanes32 a) { return _mm256_srli_epi32(a, n); }
    template <int n>
    static Lanes32 right_signed(Lanes32 a) { return _mm256_srai_epi32(a, n); }
    static Mask greater(Lanes32 a, Lanes32 b) { return _mm256_cmpgt_epi32(a, b); }
    static Mask equal(Lanes32 a, Lanes32 b) { return _mm256_cmpeq_epi32(a, b); }
    static Lanes32 select(Mask m, Lanes32 a, Lanes32 b) { return _mm256_blendv_epi8(b, a, m); }
};

}  // namespace

#include "../../include/isa_end.h"

namespace {

bool available() { return isotrain::processor().avx2; }

}  // namespace

const isotrain_tt::Engine* isotrain_tt::avx2_engine() {
    static const Engine engine{"avx2", available, multiply<Avx2>, elementwise<Avx2>};
    return &engine;
}

#endif
