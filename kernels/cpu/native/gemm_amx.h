// Products of bfloat16 with float32 sums by AMX tiles: a block of 2 x 2 tiles, 32 rows x 32 columns.
// `Tiles` is the hardware's registers or their emulation, so that this code runs on processors without AMX in tests.
#pragma once

#include "vector_math.h"

namespace isotrain {
namespace {

template <class Tiles>
struct Amx {
    static constexpr int kRows = 32;
    static constexpr int kPanel = 32;
    static constexpr int kStep = kDepth;  // K is a multiple of this

    // Like Avx512::block, but always reads whole tiles of 16 rows of a, so rows after the last must be readable.
    static void block(const bf16* a, std::size_t lda, int rows, const bf16* b, std::size_t ldb, int vectors, int k,
                      float* c) {
        if (rows > 16)
            vectors > 1 ? kernel<2, 2>(a, lda, b, ldb, k, c) : kernel<2, 1>(a, lda, b, ldb, k, c);
        else
            vectors > 1 ? kernel<1, 2>(a, lda, b, ldb, k, c) : kernel<1, 1>(a, lda, b, ldb, k, c);
    }

    static void enter_thread() { Tiles::configure(); }
    static void leave_thread() { Tiles::release(); }

   private:
    // Tiles 0-3 hold sums, 4-5 rows of a, 6-7 columns of b.
    template <int kM, int kV>
    static void kernel(const bf16* a, std::size_t lda, const bf16* b, std::size_t ldb, int k, float* c) {
        Tiles::template zero<0>();
        if constexpr (kV > 1) Tiles::template zero<1>();
        if constexpr (kM > 1) Tiles::template zero<2>();
        if constexpr (kM > 1 && kV > 1) Tiles::template zero<3>();
        const std::size_t row_bytes = lda * sizeof(bf16), pair_bytes = ldb * sizeof(bf16);
        for (int depth = 0; depth < k; depth += kDepth) {
            const bf16* columns = b + std::size_t(depth / 2) * ldb;
            Tiles::template load<6>(columns, pair_bytes);
            Tiles::template load<4>(a + depth, row_bytes);
            Tiles::template multiply<0, 4, 6>();
            if constexpr (kV > 1) {
                Tiles::template load<7>(columns + 2 * kVector, pair_bytes);
                Tiles::template multiply<1, 4, 7>();
            }
            if constexpr (kM > 1) {
                Tiles::template load<5>(a + 16 * lda + depth, row_bytes);
                Tiles::template multiply<2, 5, 6>();
                if constexpr (kV > 1) Tiles::template multiply<3, 5, 7>();
            }
        }
        constexpr std::size_t stride = kPanel * sizeof(float);
        Tiles::template store<0>(c, stride);
        if constexpr (kV > 1) Tiles::template store<1>(c + kVector, stride);
        if constexpr (kM > 1) Tiles::template store<2>(c + 16 * kPanel, stride);
        if constexpr (kM > 1 && kV > 1) Tiles::template store<3>(c + 16 * kPanel + kVector, stride);
    }
};

}  // namespace
}  // namespace isotrain
