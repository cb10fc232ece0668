// The head's step for processors with AVX2.
#include "standard.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#endif

#include "head.h"

namespace isotrain {

void head_step_avx2(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                       float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

}  // namespace isotrain

#if defined(__x86_64__) && defined(__clang__)
#pragma clang attribute pop
#endif
