// The head's step and the rate of multiply-adds for processors with AVX-512.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#include "../../include/isa_begin.h"

#include "head.h"
#include "multiply_add.h"

namespace isotrain {

void head_step_avx512(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                      float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

double multiply_add_rate_avx512(double seconds) { return multiply_add_rate<64>(seconds); }

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
