// Products by AMX tiles: a block of 2 x 2 tiles, 32 rows x 32 columns.
// `Tiles` is the hardware's registers or their emulation, so that this code runs on processors without AMX in tests.
#pragma once

#include <type_traits>

#include "gemm_avx512.h"

namespace isotrain {
namespace {

template <class Tiles>
struct Amx {
    using Dot = typename Tiles::Dot;
    using Element = typename Dot::Element;
    using Weight = typename Dot::Weight;
    // Integer sums have no order. With AVX-512 for what stays bfloat16, features of bytes have the same bits on both.
    using Bf16 = std::conditional_t<std::is_same_v<Dot, Pairs>, Amx, Avx512>;
    static constexpr int kRows = 32;
    static constexpr int kPanel = 32;
    static constexpr int kGroup = 4 / sizeof(Element);
    static constexpr int kStep = kTileBytes / sizeof(Element);  // K is a multiple of this: the depth of a tile

    // Like Avx512::block, but always reads whole tiles of 16 rows of a, so rows after the last must be readable.
    template <class Beside>
    static void block(const Element* a, std::size_t lda, int rows, const Weight* b, std::size_t ldb, int vectors, int k,
                      float* c, Beside& beside) {
        if (rows > 16)
            vectors > 1 ? kernel<2, 2>(a, lda, b, ldb, k, c, beside) : kernel<2, 1>(a, lda, b, ldb, k, c, beside);
        else
            vectors > 1 ? kernel<1, 2>(a, lda, b, ldb, k, c, beside) : kernel<1, 1>(a, lda, b, ldb, k, c, beside);
    }

    static void enter_thread() { Tiles::configure(); }
    static void leave_thread() { Tiles::release(); }

   private:
    // Tiles 0-3 hold sums, 4-5 rows of a, 6-7 columns of b. A tile's row has 16 groups of 4 bytes.
    template <int kM, int kV, class Beside>
    static void kernel(const Element* a, std::size_t lda, const Weight* b, std::size_t ldb, int k, float* c,
                       Beside& beside) {
        Tiles::template zero<0>();
        if constexpr (kV > 1) Tiles::template zero<1>();
        if constexpr (kM > 1) Tiles::template zero<2>();
        if constexpr (kM > 1 && kV > 1) Tiles::template zero<3>();
        const std::size_t row_bytes = lda * sizeof(Element), group_bytes = ldb * sizeof(Element);
        beside.begin(k / kStep);
        for (int depth = 0; depth < k; depth += kStep) {
            const Weight* columns = b + std::size_t(depth / kGroup) * ldb;
            Tiles::template load<6>(columns, group_bytes);
            Tiles::template load<4>(a + depth, row_bytes);
            Tiles::template multiply<0, 4, 6>();
            if constexpr (kV > 1) {
                Tiles::template load<7>(columns + kGroup * kVector, group_bytes);
                Tiles::template multiply<1, 4, 7>();
            }
            if constexpr (kM > 1) {
                Tiles::template load<5>(a + 16 * lda + depth, row_bytes);
                Tiles::template multiply<2, 5, 6>();
                if constexpr (kV > 1) Tiles::template multiply<3, 5, 7>();
            }
            beside.part();
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
