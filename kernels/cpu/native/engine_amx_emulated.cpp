// The AMX code path over tiles that are plain memory: for tests, on processors with AVX-512 BF16 but no AMX.
// It shows that the path reads, multiplies and writes correctly. It shows nothing about its speed.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#include "../../include/isa_begin.h"

#include "gemm_amx.h"
#include "engine.h"

namespace isotrain {
namespace {

// Semantics of TILELOADD, TILESTORED and TDPBF16PS (Intel SDM, volume 2), except for the flushing of denormals.
struct EmulatedTiles {
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
    static float widen(const unsigned char* at) {
        std::uint32_t bits = std::uint32_t(at[0]) << 16 | std::uint32_t(at[1]) << 24;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    template <int kSum, int kRowsTile, int kColumns>
    static void multiply() {
        const Tile &a = tile(kRowsTile), &b = tile(kColumns);
        for (int row = 0; row < 16; ++row)
            for (int pair = 0; pair < 16; ++pair)
                for (int column = 0; column < 16; ++column) {
                    float sum;
                    unsigned char* at = tile(kSum).bytes[row] + 4 * column;
                    std::memcpy(&sum, at, sizeof sum);
                    for (int half = 0; half < 2; ++half)
                        sum += widen(a.bytes[row] + 4 * pair + 2 * half) * widen(b.bytes[pair] + 4 * column + 2 * half);
                    std::memcpy(at, &sum, sizeof sum);
                }
    }
};

}  // namespace

const Engine* amx_emulated_engine() {
    static constexpr Engine engine = make_engine<Amx<EmulatedTiles>>("amx_emulated");
    return &engine;
}

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
