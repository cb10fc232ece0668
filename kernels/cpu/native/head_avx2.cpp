// The head's step and the rate of multiply-adds for processors with AVX2.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma"
#include "../../include/isa_begin.h"

#include "head.h"
#include "multiply_add.h"

namespace isotrain {

void head_step_avx2(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                    float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

double multiply_add_rate_avx2(double seconds) { return multiply_add_rate<32>(seconds); }

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
