// What the processor has and the operating system lets a program use, by CPUID (Intel's manual, volume 2, CPUID; volume
// 1, 13.3 and 14.3). __builtin_cpu_supports always says no where a compiler brings a runtime library without it.
#pragma once

#if defined(__x86_64__)

#include <cpuid.h>

namespace isotrain {

struct Processor {
    bool avx2 = false, fma = false, avx512 = false, avx512_cd = false, avx512_bf16 = false, avx512_vnni = false;
    bool amx_tile = false, amx_bf16 = false, amx_int8 = false;
};

// avx512: F, DQ, BW and VL. AMX needs the system's permission besides.
inline Processor processor() {
    Processor found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const auto bit = [](unsigned value, int at) { return (value >> at & 1) != 0; };
    if (!bit(c, 27)) return found;  // XGETBV
    const bool has_fma = bit(c, 12);
    unsigned enabled, high;
    __asm__ volatile("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    const bool wide = (enabled & 0x6) == 0x6, widest = wide && (enabled & 0xE0) == 0xE0;
    if (!wide || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const unsigned leaves = a;
    found.avx2 = bit(b, 5);
    found.fma = has_fma;
    found.avx512 = widest && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    found.avx512_cd = found.avx512 && bit(b, 28);
    found.avx512_vnni = found.avx512 && bit(c, 11);
    const bool tiles = (enabled & 0x60000) == 0x60000;
    found.amx_bf16 = tiles && bit(d, 22);
    found.amx_tile = tiles && bit(d, 24);
    found.amx_int8 = tiles && bit(d, 25);
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512_bf16 = found.avx512 && bit(a, 5);
    return found;
}

}  // namespace isotrain

#endif
