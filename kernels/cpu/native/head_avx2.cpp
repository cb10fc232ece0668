// The head's step for processors with AVX2.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma"
#include "../../include/isa_begin.h"

#include "head.h"

namespace isotrain {

void head_step_avx2(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                    float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
