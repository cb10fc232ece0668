// The matrix unit without vector instructions: what every operation of unit.h means, and the path of other processors.
#include "unit.h"

namespace {

struct Portable {
    static constexpr int lanes = 16;
    struct Lanes16 { std::int16_t v[lanes]; };
    struct Lanes32 { std::int32_t v[lanes / 2]; };
    struct Mask { bool v[lanes / 2]; };

    template <class T, class F>
    static T each(F f) {
        T result;
        for (int i = 0; i < static_cast<int>(sizeof(result.v) / sizeof(result.v[0])); ++i) result.v[i] = f(i);
        return result;
    }
    using i16 = std::int16_t;
    using i32 = std::int32_t;
    using u32 = std::uint32_t;

    static Lanes16 load16(const i16* p) { return each<Lanes16>([&](int i) { return p[i]; }); }
    static Lanes16 set16(i16 x) { return each<Lanes16>([&](int) { return x; }); }
    static Lanes16 pair(u32 x) { return set16(static_cast<i16>(x & 0xFFFF)); }
    static Lanes16 add16(Lanes16 a, Lanes16 b) { return each<Lanes16>([&](int i) { return i16(a.v[i] + b.v[i]); }); }
    static Lanes16 sub16(Lanes16 a, Lanes16 b) { return each<Lanes16>([&](int i) { return i16(a.v[i] - b.v[i]); }); }
    static Lanes16 mul16(Lanes16 a, Lanes16 b) { return each<Lanes16>([&](int i) { return i16(a.v[i] * b.v[i]); }); }
    static Lanes16 xor16(Lanes16 a, Lanes16 b) { return each<Lanes16>([&](int i) { return i16(a.v[i] ^ b.v[i]); }); }
    static Lanes16 xor3(Lanes16 a, Lanes16 b, Lanes16 c) { return xor16(xor16(a, b), c); }
    static Lanes16 max16(Lanes16 a, Lanes16 b) {
        return each<Lanes16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    // (a b + 2^14) >> 15
    static Lanes16 mul_round(Lanes16 a, Lanes16 b) {
        return each<Lanes16>([&](int i) { return i16((a.v[i] * b.v[i] + (1 << 14)) >> 15); });
    }
    // 2^(14 - d), 0 for d > 14; d >= 0
    static Lanes16 power(Lanes16 d) {
        return each<Lanes16>([&](int i) { return i16(d.v[i] > 14 ? 0 : 1 << (14 - d.v[i])); });
    }
    // of the low byte; the high one is 0
    static Lanes16 count_bits(Lanes16 a) {
        return each<Lanes16>([&](int i) {
            int x = a.v[i];
            x = (x & 0x55) + (x >> 1 & 0x55);
            x = (x & 0x33) + (x >> 2 & 0x33);
            return i16((x & 15) + (x >> 4));
        });
    }
    static Lanes16 where_greater(Lanes16 a, Lanes16 b, Lanes16 value) {
        return each<Lanes16>([&](int i) { return i16(a.v[i] > b.v[i] ? value.v[i] : 0); });
    }
    static Lanes32 low(Lanes16 a) { return each<Lanes32>([&](int i) { return i32(a.v[i]); }); }
    static Lanes32 high(Lanes16 a) { return each<Lanes32>([&](int i) { return i32(a.v[i + lanes / 2]); }); }

    static Lanes32 load32(const u32* p) { return each<Lanes32>([&](int i) { return i32(p[i]); }); }
    static void store32(u32* p, Lanes32 a) { for (int i = 0; i < lanes / 2; ++i) p[i] = u32(a.v[i]); }
    static Lanes32 set32(i32 x) { return each<Lanes32>([&](int) { return x; }); }
    static Lanes32 add32(Lanes32 a, Lanes32 b) {
        return each<Lanes32>([&](int i) { return i32(u32(a.v[i]) + u32(b.v[i])); });
    }
    static Lanes32 sub32(Lanes32 a, Lanes32 b) {
        return each<Lanes32>([&](int i) { return i32(u32(a.v[i]) - u32(b.v[i])); });
    }
    static Lanes32 mul32(Lanes32 a, Lanes32 b) { return each<Lanes32>([&](int i) { return a.v[i] * b.v[i]; }); }
    static Lanes32 and32(Lanes32 a, Lanes32 b) { return each<Lanes32>([&](int i) { return a.v[i] & b.v[i]; }); }
    static Lanes32 or32(Lanes32 a, Lanes32 b) { return each<Lanes32>([&](int i) { return a.v[i] | b.v[i]; }); }
    static Lanes32 xor32(Lanes32 a, Lanes32 b) { return each<Lanes32>([&](int i) { return a.v[i] ^ b.v[i]; }); }
    static Lanes32 max32(Lanes32 a, Lanes32 b) {
        return each<Lanes32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static Lanes32 min32(Lanes32 a, Lanes32 b) {
        return each<Lanes32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static Lanes32 abs32(Lanes32 a) { return each<Lanes32>([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; }); }
    // 32 for 0
    static Lanes32 leading_zeros(Lanes32 a) {
        return each<Lanes32>([&](int i) {
            int zeros = 32;
            for (u32 x = u32(a.v[i]); x; x >>= 1) --zeros;
            return zeros;
        });
    }
    // by counts taken as unsigned: 32 and more shift everything out
    static Lanes32 shift_left(Lanes32 a, Lanes32 d) {
        return each<Lanes32>([&](int i) { return u32(d.v[i]) > 31 ? 0 : i32(u32(a.v[i]) << d.v[i]); });
    }
    static Lanes32 shift_right_signed(Lanes32 a, Lanes32 d) {
        return each<Lanes32>([&](int i) { return a.v[i] >> (u32(d.v[i]) > 31 ? 31 : d.v[i]); });
    }
    template <int n>
    static Lanes32 left(Lanes32 a) { return each<Lanes32>([&](int i) { return i32(u32(a.v[i]) << n); }); }
    template <int n>
    static Lanes32 right(Lanes32 a) { return each<Lanes32>([&](int i) { return i32(u32(a.v[i]) >> n); }); }
    template <int n>
    static Lanes32 right_signed(Lanes32 a) { return each<Lanes32>([&](int i) { return a.v[i] >> n; }); }
    static Mask greater(Lanes32 a, Lanes32 b) { return each<Mask>([&](int i) { return a.v[i] > b.v[i]; }); }
    static Mask equal(Lanes32 a, Lanes32 b) { return each<Mask>([&](int i) { return a.v[i] == b.v[i]; }); }
    static Lanes32 select(Mask m, Lanes32 a, Lanes32 b) {
        return each<Lanes32>([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
    }
};

bool available() { return true; }

}  // namespace

const isotrain_tt::Engine* isotrain_tt::portable_engine() {
    static const Engine engine{"portable", available, multiply<Portable>, elementwise<Portable>};
    return &engine;
}
