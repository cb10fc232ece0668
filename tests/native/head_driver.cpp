// Runs the head's step with every buffer exactly as large as the interface asks for, once an instruction set.
// Built with the sanitizers by test_sanitizers.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "../../kernels/cpu/native/head_step.h"

extern "C" std::size_t isotrain_cpu_head_workspace(const isotrain::HeadTensors*, int);

namespace {

std::mt19937 generator(2);

std::vector<std::unique_ptr<float[]>> owned;

float* floats(std::size_t count, float deviation) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    owned.push_back(std::unique_ptr<float[]>(new float[count]));
    for (std::size_t i = 0; i < count; ++i) owned.back()[i] = deviation * normal(generator);
    return owned.back().get();
}

bool run(isotrain::HeadStep step, int features, int hidden, int labels, int batch) {
    owned.clear();
    isotrain::HeadTensors t{features, hidden, labels, {}, {}, {}, {}};
    const std::size_t sizes[] = {std::size_t(hidden) * features, std::size_t(hidden), std::size_t(labels) * hidden,
                                 std::size_t(labels)};
    for (int i = 0; i < 4; ++i) {
        t.weight[i] = floats(sizes[i], 0.1f);
        t.moment[i] = floats(sizes[i], 0.0f);
        t.square[i] = floats(sizes[i], 0.0f);
        t.step[i] = floats(1, 0.0f);
    }
    const float* x = floats(std::size_t(batch) * features, 1.0f);
    std::unique_ptr<std::int64_t[]> y(new std::int64_t[batch]);
    for (int b = 0; b < batch; ++b) y[b] = generator() % labels;
    float* workspace = floats(isotrain_cpu_head_workspace(&t, batch), 0.0f);
    const isotrain::AdamSettings settings{1e-2, 0.9, 0.999, 1e-8, 0.01, 1};
    float first = 0.0f, last = 0.0f;
    for (int index = 0; index < 20; ++index) {
        last = step(t, x, y.get(), batch, 1.0f / batch, settings, workspace);
        if (index == 0) first = last;
    }
    const bool ok = std::isfinite(last) && (last < first || labels == 1);
    if (!ok) std::printf("%d %d %d x%d: %g to %g\n", features, hidden, labels, batch, first, last);
    return ok;
}

}  // namespace

int main() {
    std::vector<isotrain::HeadStep> steps = {isotrain::head_step_plain};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) steps.push_back(isotrain::head_step_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        steps.push_back(isotrain::head_step_avx512);
#endif
    int ran = 0, failed = 0;
    for (isotrain::HeadStep step : steps)
        for (const auto& [features, hidden, labels] : {std::tuple{64, 32, 5}, {37, 21, 3}, {16, 1, 1}, {7, 100, 17}})
            for (int batch : {1, 7, 8, 9, 17}) {
                failed += !run(step, features, hidden, labels, batch);
                ++ran;
            }
    std::printf("%d runs, %d failed\n", ran, failed);
    return failed != 0;
}
