// The C interface of the head's step, and its plain form for processors without AVX2.
#include "standard.h"

#include "../../include/processor.h"
#include "head.h"

namespace isotrain {

void head_step_plain(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                      float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

namespace {

HeadStep fastest() {
#if defined(__x86_64__)
    const Processor found = processor();
    if (found.avx512) return head_step_avx512;
    if (found.avx2 && found.fma) return head_step_avx2;
#endif
    return head_step_plain;
}

}  // namespace
}  // namespace isotrain

extern "C" {

// The number of float32 values in the workspace of a step over `batch` texts.
std::size_t isotrain_cpu_head_workspace(const isotrain::HeadTensors* t, int batch) {
    using isotrain::kVector;
    using isotrain::round_up;
    const std::size_t rows = round_up(batch, isotrain::kTexts);
    return rows * (round_up(t->features, kVector) + 3 * round_up(t->hidden, kVector) + round_up(t->labels, kVector));
}

// One step over features [batch][features] and labels [batch]; sums: the batch's summed loss and correct texts.
// Returns 0, or the 1-based position of a label that the head lacks. Then nothing is changed.
int isotrain_cpu_head_step(const isotrain::HeadTensors* t, const float* features, const std::int64_t* labels, int batch,
                           float inverse_samples, const isotrain::AdamSettings* settings, float* workspace,
                           float* sums) {
    static const isotrain::HeadStep step = isotrain::fastest();
    for (int b = 0; b < batch; ++b)
        if (labels[b] < 0 || labels[b] >= t->labels) return b + 1;
    step(*t, features, labels, batch, inverse_samples, *settings, workspace, sums);
    return 0;
}

}  // extern "C"
