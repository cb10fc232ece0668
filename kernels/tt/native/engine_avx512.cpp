// The matrix unit on AVX-512 (F, BW, DQ, CD and VL; Skylake-SP, Zen 4 and later).
#if defined(__x86_64__)

#include <cstdint>

#include "../../include/intrinsics.h"
#include "../../include/processor.h"
#include "engine.h"

#define ISOTRAIN_ISA "avx512f,avx512bw,avx512dq,avx512cd,avx512vl"
#include "../../include/isa_begin.h"

#include "unit.h"

namespace {

struct Avx512 {
    static constexpr int lanes = 32;
    using Lanes16 = __m512i;
    using Lanes32 = __m512i;
    using Mask = __mmask16;

    static Lanes16 load16(const std::int16_t* p) { return _mm512_loadu_si512(p); }
    static Lanes16 set16(std::int16_t x) { return _mm512_set1_epi16(x); }
    static Lanes16 pair(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Lanes16 add16(Lanes16 a, Lanes16 b) { return _mm512_add_epi16(a, b); }
    static Lanes16 sub16(Lanes16 a, Lanes16 b) { return _mm512_sub_epi16(a, b); }
    static Lanes16 mul16(Lanes16 a, Lanes16 b) { return _mm512_mullo_epi16(a, b); }
    static Lanes16 xor16(Lanes16 a, Lanes16 b) { return _mm512_xor_si512(a, b); }
    static Lanes16 xor3(Lanes16 a, Lanes16 b, Lanes16 c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
    static Lanes16 max16(Lanes16 a, Lanes16 b) { return _mm512_max_epi16(a, b); }
    static Lanes16 mul_round(Lanes16 a, Lanes16 b) { return _mm512_mulhrs_epi16(a, b); }
    static Lanes16 power(Lanes16 d) { return _mm512_srlv_epi16(_mm512_set1_epi16(1 << 14), d); }
    static Lanes16 count_bits(Lanes16 a) {
        const auto nibbles = _mm512_set1_epi16(15);
        const auto counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        return _mm512_add_epi16(_mm512_shuffle_epi8(counts, _mm512_and_si512(a, nibbles)),
                                _mm512_shuffle_epi8(counts, _mm512_srli_epi16(a, 4)));
    }
    static Lanes16 where_greater(Lanes16 a, Lanes16 b, Lanes16 value) {
        return _mm512_maskz_mov_epi16(_mm512_cmpgt_epi16_mask(a, b), value);
    }
    static Lanes32 low(Lanes16 a) { return _mm512_cvtepi16_epi32(_mm512_castsi512_si256(a)); }
    static Lanes32 high(Lanes16 a) { return _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(a, 1)); }

    static Lanes32 load32(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
    static void store32(std::uint32_t* p, Lanes32 a) { _mm512_storeu_si512(p, a); }
    static Lanes32 set32(int x) { return _mm512_set1_epi32(x); }
    static Lanes32 add32(Lanes32 a, Lanes32 b) { return _mm512_add_epi32(a, b); }
    static Lanes32 sub32(Lanes32 a, Lanes32 b) { return _mm512_sub_epi32(a, b); }
    static Lanes32 mul32(Lanes32 a, Lanes32 b) { return _mm512_mullo_epi32(a, b); }
    static Lanes32 and32(Lanes32 a, Lanes32 b) { return _mm512_and_si512(a, b); }
    static Lanes32 or32(Lanes32 a, Lanes32 b) { return _mm512_or_si512(a, b); }
    static Lanes32 xor32(Lanes32 a, Lanes32 b) { return _mm512_xor_si512(a, b); }
    static Lanes32 max32(Lanes32 a, Lanes32 b) { return _mm512_max_epi32(a, b); }
    static Lanes32 min32(Lanes32 a, Lanes32 b) { return _mm512_min_epi32(a, b); }
    static Lanes32 abs32(Lanes32 a) { return _mm512_abs_epi32(a); }
    static Lanes32 leading_zeros(Lanes32 a) { return _mm512_lzcnt_epi32(a); }
    static Lanes32 shift_left(Lanes32 a, Lanes32 d) { return _mm512_sllv_epi32(a, d); }
    static Lanes32 shift_right_signed(Lanes32 a, Lanes32 d) { return _mm512_srav_epi32(a, d); }
    template <int n>
    static Lanes32 left(Lanes32 a) { return _mm512_slli_epi32(a, n); }
    template <int n>
    static Lanes32 right(Lanes32 a) { return _mm512_srli_epi32(a, n); }
    template <int n>
    static Lanes32 right_signed(Lanes32 a) { return _mm512_srai_epi32(a, n); }
    static Mask greater(Lanes32 a, Lanes32 b) { return _mm512_cmpgt_epi32_mask(a, b); }
    static Mask equal(Lanes32 a, Lanes32 b) { return _mm512_cmpeq_epi32_mask(a, b); }
    static Lanes32 select(Mask m, Lanes32 a, Lanes32 b) { return _mm512_mask_mov_epi32(b, m, a); }
};

}  // namespace

#include "../../include/isa_end.h"

namespace {

bool available() { return isotrain::processor().avx512_cd; }

}  // namespace

const isotrain_tt::Engine* isotrain_tt::avx512_engine() {
    static const Engine engine{"avx512", available, multiply<Avx512>, elementwise<Avx512>};
    return &engine;
}

#endif
