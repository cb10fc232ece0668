// Products by the dot-product instructions of AVX-512: a register block of 6 rows x 64 columns.
#pragma once

#include "vector_math.h"

namespace isotrain {
namespace {

// What is done beside a product: begin(parts), then part() that often.
struct Nothing {
    void begin(int) {}
    void part() {}
};

// What one instruction multiplies and sums in each 32-bit lane. VDPBF16PS: two bfloat16 each, in float32.
struct Pairs {
    using Element = bf16;
    using Weight = bf16;
    using Sum = __m512;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Sum add(Sum sum, __m512i row, __m512i columns) {
        return _mm512_dpbf16_ps(sum, (__m512bh)row, (__m512bh)columns);
    }
    static void store(float* c, Sum sum) { _mm512_store_ps(c, sum); }
};

// VPDPBUSD: four unsigned bytes of a row with four signed ones of a column, in int32, exactly.
struct Quads {
    using Element = std::uint8_t;
    using Weight = std::int8_t;
    using Sum = __m512i;
    static Sum zero() { return _mm512_setzero_si512(); }
    static Sum add(Sum sum, __m512i row, __m512i columns) { return _mm512_dpbusd_epi32(sum, row, columns); }
    static void store(float* c, Sum sum) { _mm512_store_si512(c, sum); }
};

template <class Dot>
struct Avx512Of {
    using Element = typename Dot::Element;
    using Weight = typename Dot::Weight;
    using Bf16 = Avx512Of<Pairs>;
    static constexpr int kRows = 6;
    static constexpr int kPanel = 64;
    static constexpr int kGroup = 4 / sizeof(Element);  // elements that one lane multiplies at once
    static constexpr int kStep = kGroup;                // K is a multiple of this

    // c[rows][kPanel] = a[rows][k] b[k][16 vectors], sums as Dot stores them. ldb is in elements; rows <= kRows,
    // vectors <= kPanel / 16. b: [k / kGroup][ldb / kGroup columns][kGroup]. Reads exactly `rows` rows of a.
    template <class Beside>
    static void block(const Element* a, std::size_t lda, int rows, const Weight* b, std::size_t ldb, int vectors, int k,
                      float* c, Beside& beside) {
        beside.begin(1);
        beside.part();
        multiply(a, lda, rows, b, ldb, vectors, k, c);
    }

    static void enter_thread() {}
    static void leave_thread() {}

   private:
    using Kernel = void (*)(const Element*, std::size_t, const Weight*, std::size_t, int, float*);

    static void multiply(const Element* a, std::size_t lda, int rows, const Weight* b, std::size_t ldb, int vectors,
                         int k, float* c) {
        static constexpr Kernel table[kRows][kPanel / kVector] = {
            {kernel<1, 1>, kernel<1, 2>, kernel<1, 3>, kernel<1, 4>},
            {kernel<2, 1>, kernel<2, 2>, kernel<2, 3>, kernel<2, 4>},
            {kernel<3, 1>, kernel<3, 2>, kernel<3, 3>, kernel<3, 4>},
            {kernel<4, 1>, kernel<4, 2>, kernel<4, 3>, kernel<4, 4>},
            {kernel<5, 1>, kernel<5, 2>, kernel<5, 3>, kernel<5, 4>},
            {kernel<6, 1>, kernel<6, 2>, kernel<6, 3>, kernel<6, 4>}};
        table[rows - 1][vectors - 1](a, lda, b, ldb, k, c);
    }

    template <int kM, int kV>
    static void kernel(const Element* a, std::size_t lda, const Weight* b, std::size_t ldb, int k, float* c) {
        typename Dot::Sum sum[kM][kV];
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) sum[m][v] = Dot::zero();
        for (int step = 0; step < k / kGroup; ++step) {
            __m512i columns[kV];
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v)
                columns[v] = _mm512_loadu_si512(b + step * ldb + std::size_t(v) * kGroup * kVector);
#pragma GCC unroll 8
            for (int m = 0; m < kM; ++m) {
                int group;
                std::memcpy(&group, a + m * lda + kGroup * step, sizeof group);
                const __m512i row = _mm512_set1_epi32(group);
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) sum[m][v] = Dot::add(sum[m][v], row, columns[v]);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) Dot::store(c + m * kPanel + v * kVector, sum[m][v]);
    }
};

using Avx512 = Avx512Of<Pairs>;
using Avx512Vnni = Avx512Of<Quads>;

}  // namespace
}  // namespace isotrain
