// The encoder for processors with AMX tiles of bfloat16 and of bytes: Intel Sapphire Rapids and later.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8"
#include "../../include/isa_begin.h"

#include "gemm_amx.h"
#include "engine.h"
#include "train_step.h"

namespace isotrain {
namespace {

// The processor's eight tile registers, all of 16 rows of 64 bytes.
template <class Products>
struct HardwareTiles {
    using Dot = Products;
    static void configure() {
        struct alignas(64) {
            std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {};
            std::uint8_t rows[16] = {};
        } shapes;
        static_assert(sizeof shapes == 64, "the layout that LDTILECFG reads");
        for (int tile = 0; tile < 8; ++tile) {
            shapes.row_bytes[tile] = 64;
            shapes.rows[tile] = 16;
        }
        // GCC 12's _tile_loadconfig names 8 of the 64 bytes as its input, so that it leaves the rest unwritten.
        __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
    }
    static void release() { _tile_release(); }

    // Written out, because the compiler's intrinsics need literal register numbers, not template arguments.
    template <int kTile>
    static void zero() {
        __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
    }
    template <int kTile>
    static void load(const void* source, std::size_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(kTile) : "memory");
    }
    template <int kTile>
    static void store(void* target, std::size_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(stride), "i"(kTile) : "memory");
    }
    template <int kSum, int kRowsTile, int kColumns>
    static void multiply() {
        if constexpr (std::is_same_v<Dot, Pairs>)
            __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRowsTile), "i"(kColumns));
        else
            __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRowsTile), "i"(kColumns));
    }
};

}  // namespace

const Engine* amx_engine() {
    static constexpr Training training = make_training<Amx<HardwareTiles<Pairs>>>();
    static constexpr Engine engine = make_engine<Amx<HardwareTiles<Pairs>>>("amx_bf16", &training);
    return &engine;
}

const Engine* amx_int8_engine() {
    static constexpr Engine engine = make_engine<Amx<HardwareTiles<Quads>>>("amx_int8");
    return &engine;
}

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
