// The C interface of the head's step and of the rate of multiply-adds, and the step's plain form for processors without
// AVX2.
#include "standard.h"

#include "../../include/processor.h"
#include "head.h"

namespace isotrain {

void head_step_plain(const HeadTensors& tensors, const float* features, const std::int64_t* labels, int batch,
                      float inverse, const AdamSettings& settings, float* workspace, float* sums) {
    head_step(tensors, features, labels, batch, inverse, settings, workspace, sums);
}

namespace {

struct Vectors {
    const char* name;
    HeadStep step;
    double (*multiply_add_rate)(double seconds);
};

Vectors widest() {
#if defined(__x86_64__)
    const Processor found = processor();
    if (found.avx512) return {"avx512_float32", head_step_avx512, multiply_add_rate_avx512};
    if (found.avx2 && found.fma) return {"avx2_float32", head_step_avx2, multiply_add_rate_avx2};
#endif
    // Libraries use vectors there that this library doesn't know (AVX, SVE): what it could measure bounds nothing.
    return {nullptr, head_step_plain, nullptr};
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
    static const isotrain::HeadStep step = isotrain::widest().step;
    for (int b = 0; b < batch; ++b)
        if (labels[b] < 0 || labels[b] >= t->labels) return b + 1;
    step(*t, features, labels, batch, inverse_samples, *settings, workspace, sums);
    return 0;
}

// The name of the widest float32 vectors, and the operations/s of one thread's multiply-adds in them; null and 0 where
// they aren't known.
const char* isotrain_cpu_vectors() { return isotrain::widest().name; }

double isotrain_cpu_multiply_add_rate(double seconds) {
    const auto rate = isotrain::widest().multiply_add_rate;
    return rate == nullptr ? 0.0 : rate(seconds);
}

}  // extern "C"
