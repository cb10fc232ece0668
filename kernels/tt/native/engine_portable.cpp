// The matrix unit in plain C++, for processors without AVX2: loops over a panel's columns that any compiler can
// vectorise, and the accumulator one column at a time.
#include <cstring>

#include "unit.h"

namespace {

using i32 = std::int32_t;
using u32 = std::uint32_t;

struct Portable {
    static constexpr int lanes = 2;
    using Lanes32 = i32;
    using Mask = bool;

    static Lanes32 load32(const u32* p) { return i32(*p); }
    static void store32(u32* p, Lanes32 a) { *p = u32(a); }
    static Lanes32 set32(i32 x) { return x; }
    static Lanes32 add32(Lanes32 a, Lanes32 b) { return i32(u32(a) + u32(b)); }
    static Lanes32 sub32(Lanes32 a, Lanes32 b) { return i32(u32(a) - u32(b)); }
    static Lanes32 mul32(Lanes32 a, Lanes32 b) { return a * b; }
    static Lanes32 and32(Lanes32 a, Lanes32 b) { return a & b; }
    static Lanes32 or32(Lanes32 a, Lanes32 b) { return a | b; }
    static Lanes32 xor32(Lanes32 a, Lanes32 b) { return a ^ b; }
    static Lanes32 max32(Lanes32 a, Lanes32 b) { return a > b ? a : b; }
    static Lanes32 min32(Lanes32 a, Lanes32 b) { return a < b ? a : b; }
    static Lanes32 abs32(Lanes32 a) { return a < 0 ? -a : a; }
    // From the exponent of the value as a double, which holds it exactly; 0 has none.
    static Lanes32 leading_zeros(Lanes32 a) {
        const double value = u32(a);
        std::uint64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return a ? i32(31 + 1023) - i32(bits >> 52) : 32;
    }
    static Lanes32 shift_left(Lanes32 a, Lanes32 d) { return u32(d) > 31 ? 0 : i32(u32(a) << d); }
    static Lanes32 shift_right_signed(Lanes32 a, Lanes32 d) { return a >> (u32(d) > 31 ? 31 : d); }
    template <int n>
    static Lanes32 left(Lanes32 a) { return i32(u32(a) << n); }
    template <int n>
    static Lanes32 right(Lanes32 a) { return i32(u32(a) >> n); }
    template <int n>
    static Lanes32 right_signed(Lanes32 a) { return a >> n; }
    static Mask greater(Lanes32 a, Lanes32 b) { return a > b; }
    static Mask equal(Lanes32 a, Lanes32 b) { return a == b; }
    static Lanes32 select(Mask m, Lanes32 a, Lanes32 b) { return m ? a : b; }
};

// Adding to a float of this size rounds to a whole number, halves to even.
constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23
// A product has 12 bits, so this factor moves a half away from 0, and nothing else past a half.
constexpr float kAway = 1.0f + 1.0f / 8192.0f;

// The parts of in1 that a phase reads for 8 consecutive k, signed, and their exponents.
struct Group {
    float part[kGroup][kPanel];
    const std::int16_t* exponent;

    void fill(const Panel& panel, int which, int at) {
        exponent = panel.exponent + at * kPanel;
        const std::int16_t* doubled = panel.part[which] + at * kPanel;
        const std::int16_t* sign = panel.sign + at * kPanel;
        for (int i = 0; i < kGroup; ++i)
            for (int j = 0; j < kPanel; ++j) {
                const int magnitude = doubled[i * kPanel + j] >> 1;
                part[i][j] = static_cast<float>((magnitude ^ sign[i * kPanel + j]) - sign[i * kPanel + j]);
            }
    }
};

// One group of a row's products with every column: their sum, aligned to the largest exponent, and that exponent.
void add_up(const Group& group, const Row& row, int which, int at, int offset, i32* sum, i32* top) {
    float part[kGroup];
    std::int16_t exponent[kGroup];
    for (int i = 0; i < kGroup; ++i) {
        const float magnitude = static_cast<float>(row.part[which][at + i] & 0xFFFF) * kAway;
        part[i] = row.sign[at + i] ? -magnitude : magnitude;
        exponent[i] = static_cast<std::int16_t>(row.exponent[at + i] & 0xFFFF);
    }
    std::int16_t largest[kPanel];
    for (int j = 0; j < kPanel; ++j) largest[j] = std::int16_t(group.exponent[j] + exponent[0]);
    for (int i = 1; i < kGroup; ++i)
        for (int j = 0; j < kPanel; ++j) {
            const auto e = std::int16_t(group.exponent[i * kPanel + j] + exponent[i]);
            largest[j] = largest[j] > e ? largest[j] : e;
        }
    float total[kPanel];
    for (int j = 0; j < kPanel; ++j) total[j] = kWhole;
    for (int i = 0; i < kGroup; ++i) {
        // 2^-d: beyond the exponents of a float it is 0, and a product is below a half from d = 13 on.
        i32 scale[kPanel];
        for (int j = 0; j < kPanel; ++j) {
            const auto d = std::int16_t(group.exponent[i * kPanel + j] + exponent[i] - largest[j] + 127);
            scale[j] = i32(d > 0 ? d : std::int16_t(0)) << 23;
        }
        float power[kPanel];
        std::memcpy(power, scale, sizeof power);
        for (int j = 0; j < kPanel; ++j) total[j] += group.part[i][j] * part[i] * power[j];
    }
    for (int j = 0; j < kPanel; ++j) {
        sum[j] = largest[j] > offset ? static_cast<i32>(total[j] - kWhole) : 0;
        top[j] = largest[j] > offset ? largest[j] - offset : 0;
    }
}

template <bool fp32>
void multiply_rows(const Row* rows, int count, const Panel& panel, int k, const Rules& rules, u32* const* dst) {
    Group groups[2];
    for (int tile = 0; tile < k; tile += kTile) {
        for (int phase = 0; phase < rules.phases; ++phase) {
            const int a = phase & 1, b = phase >> 1;
            const int offset = 127 + (a ? 5 : 0) + (b ? 7 : 0);
            for (int slice = tile; slice < tile + kTile; slice += kSlice) {
                for (int half = 0; half < 2; ++half) groups[half].fill(panel, a, slice + half * kGroup);
                for (int row = 0; row < count; ++row) {
                    i32 sum[2][kPanel], top[2][kPanel];
                    for (int half = 0; half < 2; ++half)
                        add_up(groups[half], rows[row], b, slice + half * kGroup, offset, sum[half], top[half]);
                    for (int j = 0; j < kPanel; ++j)
                        dst[row][j] = u32(accumulate<Portable, fp32>(sum[0][j], top[0][j], sum[1][j], top[1][j],
                                                                     i32(dst[row][j]), rules.wormhole));
                }
            }
        }
    }
}

void multiply_portable(const Row* rows, int count, const Panel& panel, int k, const Rules& rules, u32* const* dst) {
    if (rules.fp32_dest)
        multiply_rows<true>(rows, count, panel, k, rules, dst);
    else
        multiply_rows<false>(rows, count, panel, k, rules, dst);
}

bool available() { return true; }

}  // namespace

const isotrain_tt::Engine* isotrain_tt::portable_engine() {
    static const Engine engine{"portable", available, multiply_portable, elementwise<Portable>};
    return &engine;
}
