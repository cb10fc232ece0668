// One instruction set's matrix unit and its data. Everything is in 16-bit lanes over n until the sums of a slice go
// into Dst, which has 32-bit lanes.
#pragma once

#include <cstdint>

namespace isotrain_tt {

constexpr int kPanel = 32;      // columns of in1 that are packed together; a multiple of every engine's lanes
constexpr int kRows = 8;        // rows of in0 that share a panel's slice while it is in the L1 cache
constexpr int kGroup = 8;       // products that are aligned to one exponent
constexpr int kSlice = 16;      // depth of one instruction
constexpr int kTile = 32;       // all phases of one tile of k come before the next tile
constexpr int kZero = -8000;    // the exponent of a zero operand: below all others, and twice it fits 16 bits

// in1's panel: [k][kPanel] of each. The parts of a mantissa are doubled, so mulhrs rounds an unshifted one correctly.
struct Panel {
    std::int16_t* part[2];      // mantissa bits of the phases with bit 0 clear (5 upper bits) and set (5 lower bits)
    std::int16_t* exponent;     // biased, or kZero
    std::int16_t* sign;         // 0 or -1
    std::int16_t* signs;        // [k / kGroup][kPanel], a bit for each of a group's signs
};

// A row of in0: [k] of each, every value twice, so that a 32-bit broadcast fills 16-bit lanes.
struct Row {
    std::uint32_t* part[2];     // mantissa bits of the phases with bit 1 clear (7 upper bits) and set (4 lower bits << 3)
    std::uint32_t* exponent;
    std::uint32_t* sign;
    std::uint32_t* signs;       // [k / kGroup]
};

struct Rules {
    int phases;                 // 1 LoFi .. 4 HiFi4
    bool fp32_dest;
    bool wormhole;              // with its renormalisation erratum
};

// dst: rows pointers to kPanel bit patterns each, read and replaced. k: a multiple of kTile.
using Multiply = void (*)(const Row* rows, int count, const Panel& panel, int k, const Rules& rules,
                          std::uint32_t* const* dst);

enum class Operation : int { add, subtract, multiply };

// out[i] = a[i] op b[i] for kPanel bit patterns: ELWADD or ELWMUL on a Dst that holds 0.
using Elementwise = void (*)(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* out, Operation operation,
                             const Rules& rules);

struct Engine {
    const char* name;
    bool (*available)();
    Multiply multiply;
    Elementwise elementwise;
};

const Engine* avx512_engine();
const Engine* avx2_engine();
const Engine* portable_engine();

}  // namespace isotrain_tt
