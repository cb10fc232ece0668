// The interface of the fused head step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace isotrain {

// Parameters in the order hidden weight [hidden][features], hidden bias, output weight [labels][hidden], output bias;
// for each its first and second moment and its step counter, as torch's optimizers keep them.
struct HeadTensors {
    std::int32_t features, hidden, labels;
    float* weight[4];
    float* moment[4];
    float* square[4];
    float* step[4];
};

struct AdamSettings {
    double lr, beta1, beta2, eps, weight_decay;
    std::int32_t decoupled;  // AdamW's decay, or Adam's (added to the gradient)
};

// sums: the batch's summed loss and number of correct texts (ties go to the lowest class).
using HeadStep = void (*)(const HeadTensors&, const float* features, const std::int64_t* labels, int batch,
                          float inverse_samples, const AdamSettings&, float* workspace, float* sums);

void head_step_avx512(const HeadTensors&, const float*, const std::int64_t*, int, float, const AdamSettings&, float*,
                      float*);
void head_step_avx2(const HeadTensors&, const float*, const std::int64_t*, int, float, const AdamSettings&, float*,
                      float*);
double multiply_add_rate_avx512(double seconds);
double multiply_add_rate_avx2(double seconds);
void head_step_plain(const HeadTensors&, const float*, const std::int64_t*, int, float, const AdamSettings&, float*,
                      float*);

}  // namespace isotrain
