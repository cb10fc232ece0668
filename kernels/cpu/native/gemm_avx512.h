// Products of bfloat16 with float32 sums by VDPBF16PS: a register block of 6 rows x 64 columns.
#pragma once

#include "vector_math.h"

namespace isotrain {
namespace {

struct Avx512 {
    static constexpr int kRows = 6;
    static constexpr int kPanel = 64;
    static constexpr int kStep = 2;  // K is a multiple of this

    // c[rows][kPanel] = a[rows][k] b[k][16 vectors]. b: [k / 2][ldb / 2 columns][2], ldb in bfloat16; rows <= kRows,
    // vectors <= kPanel / 16. Reads exactly `rows` rows of a.
    static void block(const bf16* a, std::size_t lda, int rows, const bf16* b, std::size_t ldb, int vectors, int k,
                      float* c) {
        static constexpr Kernel table[kRows][kPanel / kVector] = {
            {kernel<1, 1>, kernel<1, 2>, kernel<1, 3>, kernel<1, 4>},
            {kernel<2, 1>, kernel<2, 2>, kernel<2, 3>, kernel<2, 4>},
            {kernel<3, 1>, kernel<3, 2>, kernel<3, 3>, kernel<3, 4>},
            {kernel<4, 1>, kernel<4, 2>, kernel<4, 3>, kernel<4, 4>},
            {kernel<5, 1>, kernel<5, 2>, kernel<5, 3>, kernel<5, 4>},
            {kernel<6, 1>, kernel<6, 2>, kernel<6, 3>, kernel<6, 4>}};
        table[rows - 1][vectors - 1](a, lda, b, ldb, k, c);
    }

    static void enter_thread() {}
    static void leave_thread() {}

   private:
    using Kernel = void (*)(const bf16*, std::size_t, const bf16*, std::size_t, int, float*);

    template <int kM, int kV>
    static void kernel(const bf16* a, std::size_t lda, const bf16* b, std::size_t ldb, int k, float* c) {
        __m512 sum[kM][kV];
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) sum[m][v] = _mm512_setzero_ps();
        for (int pair = 0; pair < k / 2; ++pair) {
            __m512bh columns[kV];
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v)
                columns[v] = (__m512bh)_mm512_loadu_si512(b + pair * ldb + std::size_t(v) * 2 * kVector);
#pragma GCC unroll 8
            for (int m = 0; m < kM; ++m) {
                int both;
                std::memcpy(&both, a + m * lda + 2 * pair, sizeof both);
                const __m512bh row = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], row, columns[v]);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) _mm512_store_ps(c + m * kPanel + v * kVector, sum[m][v]);
    }
};

}  // namespace
}  // namespace isotrain
