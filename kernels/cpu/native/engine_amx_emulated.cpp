// The AMX code path over tiles that are plain memory: for tests, on processors with AVX-512 BF16 but no AMX.
// It shows that the path reads, multiplies and writes correctly. It shows nothing about its speed.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni"
#include "../../include/isa_begin.h"

#include "gemm_amx.h"
#include "engine.h"
#include "train_step.h"

namespace isotrain {
namespace {

// TILELOADD, TILESTORED, TDPBF16PS and TDPBUSD (Intel SDM, volume 2), except for the flushing of denormals.
template <class Products>
struct EmulatedTiles {
    using Dot = Products;
    struct Tile {
        unsigned char bytes[16][64];
    };
    static Tile& tile(int index) {
        static thread_local Tile tiles[8];
        return tiles[index];
    }
    static void configure() {}
    static void release() {}

    template <int kTile>
    static void zero() {
        tile(kTile) = Tile{};
    }
    template <int kTile>
    static void load(const void* source, std::size_t stride) {
        for (int row = 0; row < 16; ++row)
            std::memcpy(tile(kTile).bytes[row], static_cast<const char*>(source) + row * stride, 64);
    }
    template <int kTile>
    static void store(void* target, std::size_t stride) {
        for (int row = 0; row < 16; ++row)
            std::memcpy(static_cast<char*>(target) + row * stride, tile(kTile).bytes[row], 64);
    }
    static __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
    static __m512 odd(__m512i pairs) {
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))));
    }
    static __m512 add(__m512 sum, __m512i row, __m512i columns) {
        return _mm512_fmadd_ps(odd(row), odd(columns), _mm512_fmadd_ps(even(row), even(columns), sum));
    }
    static __m512i add(__m512i sum, __m512i row, __m512i columns) { return Quads::add(sum, row, columns); }
    template <int kSum, int kRowsTile, int kColumns>
    static void multiply() {
        const Tile &a = tile(kRowsTile), &b = tile(kColumns);
        for (int row = 0; row < 16; ++row) {
            typename Dot::Sum sum;
            std::memcpy(&sum, tile(kSum).bytes[row], sizeof sum);
            for (int group = 0; group < 16; ++group) {
                std::int32_t left;
                std::memcpy(&left, a.bytes[row] + 4 * group, sizeof left);
                sum = add(sum, _mm512_set1_epi32(left), _mm512_loadu_si512(b.bytes[group]));
            }
            std::memcpy(tile(kSum).bytes[row], &sum, sizeof sum);
        }
    }
};

}  // namespace

const Engine* amx_emulated_engine() {
    static constexpr Training training = make_training<Amx<EmulatedTiles<Pairs>>>();
    static constexpr Engine engine = make_engine<Amx<EmulatedTiles<Pairs>>>("amx_emulated", &training);
    return &engine;
}

const Engine* amx_int8_emulated_engine() {
    static constexpr Engine engine = make_engine<Amx<EmulatedTiles<Quads>>>("amx_int8_emulated");
    return &engine;
}

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
