// The rate of float32 multiply-adds by themselves. Included by translation units for several instruction sets.
#pragma once

#include "common.h"

namespace isotrain {
namespace {

// Operations per second of one thread whose operands all stay in registers of kBytes. If these are the processor's
// widest, no float32 product exceeds it. So many independent sums hide the latency of each.
template <int kBytes>
double multiply_add_rate(double seconds) {
    typedef float Register __attribute__((vector_size(kBytes)));
    constexpr int kSums = 12, kSteps = 1 << 16, kLanes = kBytes / int(sizeof(float));
    // Sums that stay near 1, neither subnormal nor infinite. Not a constant, which the compiler could fold.
    const volatile float near_one = 0.999f;
    const Register factor = Register{} + near_one, addend = 1.0f - factor;
    Register sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = factor * float(i);
    using Clock = std::chrono::steady_clock;
    double best = 0.0;
    const auto begin = Clock::now();
    do {
        const auto start = Clock::now();
        Register now[kSums];  // Its address is taken nowhere, so that it is in registers.
        for (int i = 0; i < kSums; ++i) now[i] = sums[i];
        for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
            for (int i = 0; i < kSums; ++i) now[i] = now[i] * factor + addend;
        for (int i = 0; i < kSums; ++i) sums[i] = now[i];
        __asm__ volatile("" ::"r"(sums) : "memory");  // Without a reader of the sums, nothing would be computed.
        const double spent = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::max(best, 2.0 * kLanes * kSums * kSteps / spent);
    } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
    return best;
}

}  // namespace
}  // namespace isotrain
